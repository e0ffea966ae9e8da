import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { KubeApi } from "./kube-api.ts";
import type { Json, Plane } from "./plane.ts";

export interface Endpoint {
  readonly ip: string;
  readonly pod: string;
  readonly ready: boolean;
}

/** Endpoints may not be of loopback: pods say that they are here, and are at the same place of 127.77.0.0/16. */
export const POD_NETWORK = "10.77";
const LOOPBACK_NETWORK = "127.77";

export function loopbackOf(podIp: string): string {
  return podIp.replace(POD_NETWORK, LOOPBACK_NETWORK);
}

export function podIpOf(loopback: string): string {
  return loopback.replace(LOOPBACK_NETWORK, POD_NETWORK);
}

export async function endpointsOf(api: KubeApi, namespace: string, service: string): Promise<readonly Endpoint[]> {
  const selector = encodeURIComponent(`kubernetes.io/service-name=${service}`);
  const path = `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices?labelSelector=${selector}`;
  const { items } = await api.call("GET", path);
  return items.flatMap(({ endpoints }: Json) =>
    (endpoints ?? []).map(({ addresses, conditions, targetRef }: Json) => ({
      ip: addresses[0],
      pod: targetRef?.name ?? "",
      ready: conditions.ready !== false,
    })),
  );
}

/** How late a node's rules are behind the endpoints: kube-proxy's own default is to sync at least each second. */
const LOOK_EVERY_MS = 500;

/**
 * What kube-proxy is to a Service: an address whose connections go to the ready pods in turn. A connection stays where it
 * went. Looks at the endpoints twice a second, so that it is as late as a real one.
 */
export class ServiceProxy {
  readonly #api: KubeApi;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #ready: readonly Endpoint[] = [];
  #turn = 0;
  #timer: NodeJS.Timeout | undefined;
  /** Connections that found nobody. */
  refused = 0;

  private constructor(plane: Plane, port: number) {
    this.#api = new KubeApi(plane);
    this.#server = createServer((socket) => this.#join(socket, port));
  }

  static async start(
    plane: Plane,
    { namespace, service, port }: { namespace: string; service: string; port: number },
  ): Promise<ServiceProxy> {
    const proxy = new ServiceProxy(plane, port);
    const look = async () => {
      const endpoints = await endpointsOf(proxy.#api, namespace, service).catch(() => undefined);
      if (endpoints !== undefined) proxy.#ready = endpoints.filter(({ ready }) => ready);
      if (proxy.#server.listening) proxy.#timer = setTimeout(() => void look(), LOOK_EVERY_MS);
    };
    await new Promise<void>((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    await look();
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get ready(): readonly Endpoint[] {
    return this.#ready;
  }

  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    this.#api.close();
  }

  #join(near: Socket, port: number): void {
    const endpoint = this.#ready[this.#turn++ % Math.max(1, this.#ready.length)];
    if (endpoint === undefined) {
      this.refused += 1;
      near.destroy();
      return;
    }
    const far = connect({ host: loopbackOf(endpoint.ip), port });
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => {
        this.#sockets.delete(one);
        other.destroy();
      });
    }
    near.pipe(far);
    far.pipe(near);
  }
}
