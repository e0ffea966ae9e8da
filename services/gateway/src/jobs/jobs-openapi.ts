import type { JobsUpstream } from "./jobs-upstream.ts";

/** As much of a document as is looked at here. */
export interface Document {
  readonly paths?: Readonly<Record<string, unknown>>;
  readonly components?: { readonly schemas?: Readonly<Record<string, unknown>> };
}

const TIMEOUT_MS = 2_000;

/**
 * The gateway's document with the jobs service's routes in it. The service writes them down itself, so that what is
 * documented is what it does; while it is away, the last that it said is told.
 */
export class JobsOpenApi {
  readonly #jobs: JobsUpstream;
  #known: Document = {};

  constructor(jobs: JobsUpstream) {
    this.#jobs = jobs;
  }

  async addTo(own: Document): Promise<Document> {
    await this.#ask();
    const { paths, components } = this.#known;
    const theirs = Object.entries(paths ?? {}).filter(([path]) => path.startsWith("/v1/"));
    return {
      ...own,
      paths: { ...own.paths, ...Object.fromEntries(theirs) },
      components: { ...own.components, schemas: { ...components?.schemas, ...own.components?.schemas } },
    };
  }

  async #ask(): Promise<void> {
    try {
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      const { status, body } = await this.#jobs.call({
        method: "GET",
        path: "/openapi.json",
        headers: {},
        body: null,
        signal,
      });
      const text = Buffer.concat(await body.toArray()).toString("utf8");
      if (status === 200) this.#known = JSON.parse(text) as Document;
    } catch {
      // It is away or is starting: what it said last is still so.
    }
  }
}
