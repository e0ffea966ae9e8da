import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { DnsServer } from "@atelier/gateway/testing/dns-server";
import { isGone, KubeApi } from "./kube-api.ts";
import type { Json, Plane } from "./plane.ts";
import { PodProcess } from "./pod-process.ts";
import { endpointsOf, loopbackOf, POD_NETWORK, podIpOf } from "./service-proxy.ts";

export interface KubeletOptions {
  readonly plane: Plane;
  /** Nodes whose pods it runs: those with `pods: "none"`. */
  readonly nodes: readonly string[];
  /** What an image runs, by its name without registry and tag. */
  readonly images: Readonly<Record<string, readonly [string, ...string[]]>>;
  /** Over every pod's own environment: for addresses of servers that run beside the cluster. */
  readonly env?: Readonly<Record<string, string>>;
}

const LOOK_EVERY_MS = 200;
const LEASE_EVERY_MS = 5_000;

/**
 * Runs the pods of its nodes as processes of this machine, each on an address of loopback of its own, and tells the API
 * server how they are. What a network would do is done by hand: a server that listens on 0.0.0.0 listens on its pod's
 * address, which the name server of the headless services and the proxies of the others translate. Reads one container of a pod; volumes are not mounted.
 */
export class LoopbackKubelet {
  readonly #options: KubeletOptions;
  readonly #api: KubeApi;
  readonly #dns: DnsServer;
  readonly #preload: string;
  readonly #pods = new Map<string, PodProcess>();
  readonly #leaving = new Set<string>();
  readonly #told = new Map<string, string>();
  #nextAddress = 0;
  #stopped = false;
  #looking: Promise<void> = Promise.resolve();
  #timers: NodeJS.Timeout[] = [];
  /** Whatever went wrong in it, for the test to see. */
  readonly problems: string[] = [];
  /** Pods that it took down, in order, with how many requests they had then (of workers), as they said. */
  readonly gone: string[] = [];

  private constructor(options: KubeletOptions, dns: DnsServer) {
    this.#options = options;
    this.#api = new KubeApi(options.plane);
    this.#dns = dns;
    this.#preload = join(options.plane.folder, "name-server.mjs");
    // Every resolver of the pod's process asks our name server, as one whose resolv.conf names it would.
    writeFileSync(
      this.#preload,
      `import { Resolver } from "node:dns/promises";
const told = new WeakSet();
for (const name of ["resolve4", "resolve6"]) {
  const asked = Resolver.prototype[name];
  Resolver.prototype[name] = function (host) {
    if (!told.has(this)) this.setServers([${JSON.stringify(dns.address)}]); // refused while a question is under way
    told.add(this);
    return asked.call(this, host);
  };
}
`,
    );
  }

  static async start(options: KubeletOptions): Promise<LoopbackKubelet> {
    const kubelet = new LoopbackKubelet(options, await DnsServer.start());
    await kubelet.#renew();
    kubelet.#timers.push(setInterval(() => kubelet.#noted(kubelet.#renew()), LEASE_EVERY_MS));
    kubelet.#again();
    return kubelet;
  }

  pod(name: string): PodProcess | undefined {
    return [...this.#pods.values()].find((pod) => pod.name === name);
  }

  get pods(): readonly PodProcess[] {
    return [...this.#pods.values()];
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    for (const timer of this.#timers) clearInterval(timer);
    await this.#looking;
    for (const pod of this.#pods.values()) pod.kill();
    this.#api.close();
    await this.#dns.stop();
  }

  #again(): void {
    if (this.#stopped) return;
    this.#looking = this.#noted(this.#look()).then(() => {
      this.#timers = this.#timers.slice(0, 1);
      this.#timers.push(setTimeout(() => this.#again(), LOOK_EVERY_MS));
    });
  }

  #noted(work: Promise<void>): Promise<void> {
    return work.catch((error: unknown) => {
      if (!this.#stopped) this.problems.push(error instanceof Error ? error.message : String(error));
    });
  }

  async #look(): Promise<void> {
    const { items } = await this.#api.call("GET", "/api/v1/pods");
    const mine = items.filter(({ spec }: Json) => this.#options.nodes.includes(spec.nodeName));
    for (const pod of mine) {
      const running = this.#pods.get(pod.metadata.uid);
      if (pod.metadata.deletionTimestamp !== undefined) this.#end(pod);
      else if (running === undefined) await this.#run(pod);
      else await this.#tell(pod, running);
    }
    const there = new Set(mine.map(({ metadata }: Json) => metadata.uid));
    for (const [uid, process] of this.#pods) {
      if (there.has(uid) || this.#leaving.has(uid)) continue;
      process.kill(); // removed by force
      this.#pods.delete(uid);
    }
    await this.#names();
  }

  async #run(pod: Json): Promise<void> {
    const [container] = pod.spec.containers;
    const image = container.image.split("/").at(-1)!.split(":")[0]!;
    const command = this.#options.images[image];
    if (command === undefined) throw new Error(`${pod.metadata.name}: nothing runs the image ${image}`);
    const number = ++this.#nextAddress;
    const ip = loopbackOf(`${POD_NETWORK}.${number >> 8}.${number & 255}`);
    const env = await this.#environment(pod, container, ip);
    this.#pods.set(
      pod.metadata.uid,
      new PodProcess({
        pod,
        ip,
        command: container.command ? [container.command[0], ...container.command.slice(1)] : command,
        env: { ...env, ...this.#options.env, NODE_OPTIONS: `--import=${pathToFileURL(this.#preload)}` },
        changed: () => {},
      }),
    );
  }

  async #environment(pod: Json, { env = [] }: Json, ip: string): Promise<Record<string, string>> {
    const { namespace, name } = pod.metadata;
    const fields: Record<string, string> = {
      "metadata.name": name,
      "metadata.namespace": namespace,
      "status.podIP": ip,
      "spec.nodeName": pod.spec.nodeName,
    };
    const resolved: Record<string, string> = {};
    for (const { name: variable, value, valueFrom } of env) {
      let text = value;
      if (valueFrom?.fieldRef) text = fields[valueFrom.fieldRef.fieldPath];
      if (valueFrom?.secretKeyRef) {
        const { name: secret, key } = valueFrom.secretKeyRef;
        const { data } = await this.#api.call("GET", `/api/v1/namespaces/${namespace}/secrets/${secret}`);
        text = Buffer.from(data[key], "base64").toString();
      }
      if (text === undefined) throw new Error(`${name}: no value for ${variable}`);
      resolved[variable] = text.replace("0.0.0.0:", `${ip}:`);
    }
    return resolved;
  }

  /** The pod's status, where it is another than was told last. */
  async #tell(pod: Json, process: PodProcess): Promise<void> {
    const { uid, namespace, name } = pod.metadata;
    const status = statusOf(pod, process);
    const text = JSON.stringify(status);
    if (this.#told.get(uid) === text) return;
    await this.#api.patch(`/api/v1/namespaces/${namespace}/pods/${name}/status`, { status }).catch((error: unknown) => {
      if (!isGone(error)) throw error;
    });
    this.#told.set(uid, text);
  }

  /** Takes the pod down within its grace, and then says that it is gone. */
  #end(pod: Json): void {
    const { uid, namespace, name, deletionGracePeriodSeconds = 30 } = pod.metadata;
    if (this.#leaving.has(uid)) return;
    this.#leaving.add(uid);
    const process = this.#pods.get(uid);
    const end = async () => {
      this.gone.push(name);
      await process?.stop(deletionGracePeriodSeconds * 1000);
      const body = { apiVersion: "v1", kind: "DeleteOptions", gracePeriodSeconds: 0, preconditions: { uid } };
      await this.#api.call("DELETE", `/api/v1/namespaces/${namespace}/pods/${name}`, body).catch((error: unknown) => {
        if (!isGone(error)) throw error;
      });
      this.#pods.delete(uid);
      this.#leaving.delete(uid);
    };
    void this.#noted(end());
  }

  /** Headless services by name: CoreDNS answers with the pods that are ready, or with all where the service says so. */
  async #names(): Promise<void> {
    const { items } = await this.#api.call("GET", "/api/v1/services");
    for (const { metadata, spec } of items) {
      if (spec.clusterIP !== "None") continue;
      const endpoints = await endpointsOf(this.#api, metadata.namespace, metadata.name);
      const shown = endpoints.filter(({ ready }) => ready || spec.publishNotReadyAddresses === true);
      const name = `${metadata.name}.${metadata.namespace}.svc.cluster.local`;
      this.#dns.records.set(
        name,
        shown.map(({ ip }) => loopbackOf(ip)),
      );
    }
  }

  /** Nodes whose lease nobody renews are not ready after 40 s, and their pods are moved away. */
  async #renew(): Promise<void> {
    for (const node of this.#options.nodes) {
      const path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
      const renewTime = new Date().toISOString().replace("Z", "000Z");
      const spec = { holderIdentity: node, leaseDurationSeconds: 40, renewTime };
      await this.#api.patch(`${path}/${node}`, { spec }).catch(async (error: unknown) => {
        if (!isGone(error)) throw error;
        const metadata = { name: node, namespace: "kube-node-lease" };
        await this.#api.call("POST", path, { apiVersion: "coordination.k8s.io/v1", kind: "Lease", metadata, spec });
      });
    }
  }
}

function statusOf(pod: Json, process: PodProcess): Json {
  const [container] = pod.spec.containers;
  const when = process.startedAt;
  const condition = (type: string, holds: boolean) => ({
    type,
    status: holds ? "True" : "False",
    lastTransitionTime: when,
  });
  return {
    phase: "Running",
    podIP: podIpOf(process.ip),
    podIPs: [{ ip: podIpOf(process.ip) }],
    startTime: when,
    conditions: [
      condition("PodScheduled", true),
      condition("Initialized", true),
      condition("ContainersReady", process.ready),
      condition("Ready", process.ready),
    ],
    containerStatuses: [
      {
        name: container.name,
        image: container.image,
        imageID: "process",
        ready: process.ready,
        started: process.started,
        restartCount: process.restarts,
        state: { running: { startedAt: when } },
      },
    ],
  };
}
