import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";

/** A span as it came by OTLP. Source: opentelemetry-proto, trace/v1/trace.proto, in its JSON form. */
export interface ReceivedSpan {
  readonly service: string;
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  /** "" of a trace's first. */
  readonly parentSpanId: string;
  /** 1 internal, 2 server, 3 client, 4 producer, 5 consumer. */
  readonly kind: number;
  readonly startMs: number;
  readonly endMs: number;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly events: readonly { readonly name: string; readonly attributes: Readonly<Record<string, unknown>> }[];
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
  /** 2: it failed. */
  readonly status: number;
}

/** Takes traces as a collector does: OTLP over HTTP, as JSON. */
export class OtlpReceiver {
  /** How the next deliveries are answered: taken, left without an answer, or refused as too many. */
  manner: "takes" | "hangs" | "refuses" = "takes";
  /** Deliveries that came, taken or not. */
  deliveries = 0;
  readonly #server: Server;
  readonly #spans: ReceivedSpan[] = [];

  private constructor() {
    this.#server = createServer(async (request, response) => {
      let body = "";
      for await (const chunk of request) body += chunk;
      this.deliveries += 1;
      if (this.manner === "hangs") return;
      if (this.manner === "refuses") return response.writeHead(503).end();
      this.#spans.push(...spansOf(JSON.parse(body) as Delivery));
      return response.writeHead(200, { "content-type": "application/json" }).end("{}");
    });
  }

  static async start(): Promise<OtlpReceiver> {
    const receiver = new OtlpReceiver();
    await new Promise<void>((resolve) => receiver.#server.listen(0, "127.0.0.1", resolve));
    return receiver;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** For whoever is to send its traces here, and soon. */
  get env(): Readonly<Record<string, string>> {
    return {
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
      OTEL_BSP_SCHEDULE_DELAY: "50",
      OTEL_EXPORTER_OTLP_TIMEOUT: "500",
    };
  }

  /** What has come so far, of one trace or of all. */
  spans(traceId?: string): readonly ReceivedSpan[] {
    return this.#spans.filter((span) => traceId === undefined || span.traceId === traceId);
  }
}

/**
 * A trace as text, parents before their children, which stand below them in the order of their beginnings:
 * `SERVICE NAME`, two spaces deeper for each level.
 */
export function treeOf(spans: readonly ReceivedSpan[]): string {
  const known = new Set(spans.map(({ spanId }) => spanId));
  const under = (parent: string, depth: number): string[] =>
    spans
      .filter(({ parentSpanId }) => (known.has(parentSpanId) ? parentSpanId : "") === parent)
      .toSorted((a, b) => a.startMs - b.startMs)
      .flatMap((span) => [`${"  ".repeat(depth)}${span.service} ${span.name}`, ...under(span.spanId, depth + 1)]);
  return under("", 0).join("\n");
}

interface Delivery {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes: readonly KeyValue[] };
    readonly scopeSpans: readonly { readonly spans: readonly WireSpan[] }[];
  }[];
}

interface KeyValue {
  readonly key: string;
  readonly value: Readonly<Record<string, unknown>>;
}

interface WireSpan {
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes?: readonly KeyValue[];
  readonly events?: readonly { readonly name: string; readonly attributes?: readonly KeyValue[] }[];
  readonly links?: readonly { readonly traceId: string; readonly spanId: string }[];
  readonly status?: { readonly code?: number };
}

function spansOf({ resourceSpans }: Delivery): ReceivedSpan[] {
  return resourceSpans.flatMap(({ resource, scopeSpans }) => {
    const service = String(valuesOf(resource.attributes)["service.name"]);
    return scopeSpans.flatMap(({ spans }) =>
      spans.map((span) => ({
        service,
        name: span.name,
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId ?? "",
        kind: span.kind,
        startMs: Number(span.startTimeUnixNano) / 1e6,
        endMs: Number(span.endTimeUnixNano) / 1e6,
        attributes: valuesOf(span.attributes),
        events: (span.events ?? []).map(({ name, attributes }) => ({ name, attributes: valuesOf(attributes) })),
        links: span.links ?? [],
        status: span.status?.code ?? 0,
      })),
    );
  });
}

/** Each value stands in a field that names its type; whole numbers come as numbers or as text. */
function valuesOf(attributes: readonly KeyValue[] = []): Record<string, unknown> {
  return Object.fromEntries(
    attributes.map(({ key, value }) => {
      const [type, content] = Object.entries(value)[0] ?? [];
      return [key, type === "intValue" ? Number(content) : content];
    }),
  );
}
