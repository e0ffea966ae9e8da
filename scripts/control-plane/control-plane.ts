import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Daemon, freePort, runDaemon } from "../services/daemons.ts";
import type { Program } from "../services/programs.ts";
import { type Outcome, runProgram } from "../services/run-program.ts";
import { KWOK_STAGES } from "./kwok-stages.ts";
import { etcd, kubernetes, kwok } from "./programs.ts";

/** A node that is not there: it has what it says, and runs nothing of itself. */
export interface NodeSpec {
  readonly name: string;
  readonly gpus?: number;
  readonly labels?: Readonly<Record<string, string>>;
  readonly taints?: readonly { key: string; value?: string; effect: "NoSchedule" | "NoExecute" }[];
  /**
   * `kwok`: pods on it say that they run, at once. `none`: whoever started the control plane sees to its pods and leases
   * (the tests' kubelet, which runs them as processes).
   */
  readonly pods?: "kwok" | "none";
}

export interface ControlPlaneOptions {
  readonly nodes?: readonly NodeSpec[];
  /** Of the HorizontalPodAutoscaler's controller: 15 s and 300 s in production. */
  readonly hpa?: { readonly syncMs: number; readonly downscaleStabilizationMs: number };
}

/** The parts of Kubernetes that decide, for real, on loopback; only nodes and containers are missing. */
export interface ControlPlane {
  readonly url: string;
  /** Of an administrator. */
  readonly kubeconfig: string;
  readonly token: string;
  /** The authority of the API server's certificate, a PEM file. */
  readonly ca: string;
  /** Runs kubectl as that administrator. */
  kubectl(args: readonly string[], input?: string): Promise<Outcome>;
  /** Ends everything; what it kept goes. */
  stop(): Promise<void>;
}

const HOST = "127.0.0.1";
const CLUSTER_IPS = "10.96.0.0/16";
const ADMIN = "atelier-admin";

/**
 * Starts etcd, the API server, the controllers and the scheduler, and makes the nodes.
 *
 * @throws NotToBeHad, DaemonEnded
 */
export async function startControlPlane(options: ControlPlaneOptions = {}): Promise<ControlPlane> {
  const programs = { ...(await kubernetes()), etcd: await etcd(), kwok: await kwok() };
  const folder = await mkdtemp(join(tmpdir(), "atelier-control-plane-"));
  const running: Daemon[] = [];
  const stop = async () => {
    // The last started first: none then waits for one that is gone.
    for (const daemon of running.splice(0).reverse()) await daemon.stop();
    await rm(folder, { recursive: true, force: true });
  };
  try {
    return await start({ programs, folder, running, stop, ...options });
  } catch (error) {
    await stop();
    throw error;
  }
}

interface Starting extends ControlPlaneOptions {
  readonly programs: Readonly<Record<string, Program>>;
  readonly folder: string;
  readonly running: Daemon[];
  readonly stop: () => Promise<void>;
}

async function start({ programs, folder, running, stop, nodes = [], hpa }: Starting): Promise<ControlPlane> {
  const [etcdPort, peerPort, apiPort, controllerPort, schedulerPort, kwokPort] = [
    await freePort(HOST),
    ...(await Promise.all(Array.from({ length: 5 }, () => freePort(HOST)))),
  ];
  const tokens = { admin: randomBytes(16).toString("hex") };
  const files = await writeFiles(folder, tokens.admin);
  const url = `https://${HOST}:${apiPort}`;
  const daemon = async (name: string, args: readonly string[], answers: () => Promise<boolean>) => {
    const own = join(folder, name);
    await mkdir(own, { recursive: true });
    const command = [programs[name]!.path, ...args] as const;
    running.push(await runDaemon({ command, env: {}, address: url, answers, folder: own, startMaxMs: 120_000 }));
  };

  const etcdUrl = `http://${HOST}:${etcdPort}`;
  const peerUrl = `http://${HOST}:${peerPort}`;
  await daemon(
    "etcd",
    [
      ...["--data-dir", join(folder, "etcd", "data"), "--unsafe-no-fsync", "--log-level", "error"],
      ...["--listen-client-urls", etcdUrl, "--advertise-client-urls", etcdUrl],
      ...["--listen-peer-urls", peerUrl, "--initial-advertise-peer-urls", peerUrl],
      ...["--initial-cluster", `default=${peerUrl}`],
    ],
    () => fetchOk(`${etcdUrl}/health`),
  );
  const apiCertificates = join(folder, "kube-apiserver", "certificates");
  await daemon(
    "kube-apiserver",
    [
      `--etcd-servers=${etcdUrl}`,
      ...[`--bind-address=${HOST}`, `--advertise-address=${HOST}`, `--secure-port=${apiPort}`],
      `--cert-dir=${apiCertificates}`,
      `--token-auth-file=${files.tokens}`,
      "--authorization-mode=Node,RBAC",
      `--service-cluster-ip-range=${CLUSTER_IPS}`,
      `--service-account-issuer=${url}`,
      `--service-account-key-file=${files.publicKey}`,
      `--service-account-signing-key-file=${files.privateKey}`,
      "--allow-privileged=true",
      // Nobody else asks, and they take memory.
      "--endpoint-reconciler-type=none",
      "--profiling=false",
      "--enable-aggregator-routing=false",
    ],
    () => asked(`${url}/readyz`, tokens.admin),
  );
  const ca = join(apiCertificates, "apiserver.crt");
  const kubeconfig = await writeKubeconfig(join(folder, "kubeconfig"), { url, ca, token: tokens.admin });
  const healthy = (port: number | undefined) => () => asked(`https://${HOST}:${port}/healthz`, tokens.admin);
  await Promise.all([
    daemon(
      "kube-controller-manager",
      [
        ...[`--kubeconfig=${kubeconfig}`, `--authentication-kubeconfig=${kubeconfig}`],
        `--authorization-kubeconfig=${kubeconfig}`,
        ...[`--bind-address=${HOST}`, `--secure-port=${controllerPort}`, "--leader-elect=false"],
        ...[`--service-account-private-key-file=${files.privateKey}`, `--root-ca-file=${ca}`],
        "--use-service-account-credentials=true",
        ...(hpa === undefined
          ? []
          : [
              `--horizontal-pod-autoscaler-sync-period=${hpa.syncMs}ms`,
              `--horizontal-pod-autoscaler-downscale-stabilization=${hpa.downscaleStabilizationMs}ms`,
            ]),
      ],
      healthy(controllerPort),
    ),
    daemon(
      "kube-scheduler",
      [
        ...[`--kubeconfig=${kubeconfig}`, `--authentication-kubeconfig=${kubeconfig}`],
        `--authorization-kubeconfig=${kubeconfig}`,
        ...[`--bind-address=${HOST}`, `--secure-port=${schedulerPort}`, "--leader-elect=false"],
      ],
      healthy(schedulerPort),
    ),
    daemon(
      "kwok",
      [
        `--kubeconfig=${kubeconfig}`,
        `--config=${files.stages}`,
        "--manage-all-nodes=false",
        "--manage-nodes-with-label-selector=atelier.dev/pods=kwok",
        ...[`--server-address=${HOST}:${kwokPort}`, "--node-lease-duration-seconds=40"],
      ],
      () => fetchOk(`http://${HOST}:${kwokPort}/healthz`),
    ),
  ]);

  const kubectl: ControlPlane["kubectl"] = (args, input) =>
    runProgram(programs["kubectl"]!.path, args, { env: { KUBECONFIG: kubeconfig, HOME: folder }, input });
  const plane = { url, kubeconfig, token: tokens.admin, ca, kubectl, stop };
  for (const node of nodes) await makeNode(plane, node);
  await untilPodsMayBeMade(plane);
  return plane;
}

/** A namespace's service account is made a moment after it; a pod before that is refused. */
async function untilPodsMayBeMade({ kubectl }: Pick<ControlPlane, "kubectl">): Promise<void> {
  for (;;) {
    const { code } = await kubectl(["get", "serviceaccount", "default"]);
    if (code === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** A node as the API server has it, its capacity in its status. @throws Error with what kubectl said */
async function makeNode({ kubectl }: Pick<ControlPlane, "kubectl">, spec: NodeSpec): Promise<void> {
  const { name, gpus = 0, labels = {}, taints = [], pods = "kwok" } = spec;
  const capacity = { cpu: "64", memory: "256Gi", pods: "110", ...(gpus > 0 && { "nvidia.com/gpu": String(gpus) }) };
  const node = {
    apiVersion: "v1",
    kind: "Node",
    metadata: {
      name,
      labels: { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "atelier.dev/pods": pods, ...labels },
      annotations: { "node.alpha.kubernetes.io/ttl": "0" },
    },
    spec: { taints },
  };
  const status = {
    capacity,
    allocatable: capacity,
    ...(pods === "none" && {
      conditions: [{ type: "Ready", status: "True", reason: "LoopbackKubelet", message: "processes of this machine" }],
    }),
  };
  const made = await kubectl(["apply", "-f", "-"], JSON.stringify(node));
  if (made.code !== 0) throw new Error(`node ${name}: ${made.stderr}`);
  const patch = JSON.stringify({ status });
  const patched = await kubectl(["patch", "node", name, "--subresource=status", "--type=merge", "-p", patch]);
  if (patched.code !== 0) throw new Error(`node ${name}: ${patched.stderr}`);
}

async function writeFiles(folder: string, adminToken: string) {
  const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const files = {
    tokens: join(folder, "tokens.csv"),
    publicKey: join(folder, "service-accounts.pub"),
    privateKey: join(folder, "service-accounts.key"),
    stages: join(folder, "kwok-stages.yaml"),
  };
  await writeFile(files.stages, KWOK_STAGES);
  await writeFile(files.tokens, `${adminToken},${ADMIN},${ADMIN},"system:masters"\n`, { mode: 0o600 });
  await writeFile(files.publicKey, publicKey.export({ type: "spki", format: "pem" }));
  await writeFile(files.privateKey, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o600 });
  return files;
}

/** Where kubectl and helm find the API server, and who they are there. */
export async function writeKubeconfig(
  file: string,
  { url, ca, token }: { url: string; ca: string; token: string },
): Promise<string> {
  const name = "atelier";
  const config = {
    apiVersion: "v1",
    kind: "Config",
    clusters: [
      {
        name,
        cluster: { server: url, "certificate-authority-data": (await readFile(ca)).toString("base64") },
      },
    ],
    users: [{ name, user: { token } }],
    contexts: [{ name, context: { cluster: name, user: name, namespace: "default" } }],
    "current-context": name,
  };
  await writeFile(file, JSON.stringify(config, null, 2), { mode: 0o600 });
  return file;
}

async function fetchOk(url: string): Promise<boolean> {
  try {
    return (await fetch(url, { signal: AbortSignal.timeout(2_000) })).ok;
  } catch {
    return false;
  }
}

/** Whether it answers 200. Its certificate was made a moment ago by itself; that it listens on our loopback is enough. */
function asked(url: string, token: string): Promise<boolean> {
  return new Promise((resolve) => {
    const headers = { authorization: `Bearer ${token}` };
    const asking = request(url, { headers, rejectUnauthorized: false, timeout: 2_000 }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    asking.on("timeout", () => asking.destroy());
    asking.on("error", () => resolve(false));
    asking.end();
  });
}
