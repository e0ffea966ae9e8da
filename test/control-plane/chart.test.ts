import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { crdFiles } from "../../scripts/control-plane/crds.ts";
import { CHART, type Json, Plane, until } from "./support/plane.ts";

const A10 = { "nvidia.com/gpu.product": "NVIDIA-A10" };
const H100 = { "nvidia.com/gpu.product": "NVIDIA-H100" };
const GPU_TAINT = { key: "nvidia.com/gpu", value: "present", effect: "NoSchedule" } as const;

let plane: Plane;

beforeAll(async () => {
  plane = await Plane.start({
    nodes: [
      { name: "plain" },
      ...["a10-1", "a10-2"].map((name) => ({ name, gpus: 4, labels: A10, taints: [GPU_TAINT] })),
      {
        name: "a10-spot",
        gpus: 4,
        labels: { ...A10, "atelier.example/capacity": "spot" },
        taints: [GPU_TAINT, { key: "atelier.example/spot", effect: "NoSchedule" }],
      },
      { name: "h100-1", gpus: 8, labels: H100, taints: [GPU_TAINT] },
    ],
  });
  for (const file of await crdFiles()) await plane.kubectl(["create", "-f", file]);
  await until(
    () => plane.try(["get", "scaledobjects,podmonitors,prometheusrules,httproutes"]),
    ({ code }) => code === 0,
    { what: "the API serves the kinds of the other projects" },
  );
  // Volumes that are there: no provisioner runs.
  for (let i = 0; i < 9; i++) {
    await plane.kubectl(["create", "-f", "-"], {
      apiVersion: "v1",
      kind: "PersistentVolume",
      metadata: { name: `volume-${i}` },
      spec: {
        capacity: { storage: "200Gi" },
        accessModes: ["ReadWriteOnce", "ReadWriteMany"],
        hostPath: { path: `/volumes/${i}` },
      },
    });
  }
});

afterAll(() => plane?.stop());

/** Installs a set of values into a namespace of its own, as a release named for it. */
async function install(set: string, ...more: readonly string[]): Promise<void> {
  await plane.kubectl(["create", "namespace", set]);
  await until(
    () => plane.try(["get", "serviceaccount", "default", "-n", set]),
    ({ code }) => code === 0,
  );
  const values = join(CHART, "ci", `${set}-values.yaml`);
  await plane.helmed("install", set, CHART, "--namespace", set, "--values", values, ...more);
}

const pods = (namespace: string, component: string) =>
  plane.list("pods", "-n", namespace, "-l", `app.kubernetes.io/component=${component}`);
const running = (of: readonly Json[]) => of.every(({ status }) => status.phase === "Running");

describe.each(["small", "a10-cluster", "multi-gpu"])("the values %s", (set) => {
  const values = join(CHART, "ci", `${set}-values.yaml`);

  it("make objects that the API server admits by its own strict validation", async () => {
    const rendered = await plane.helmed("template", set, CHART, "--no-hooks", "--values", values);
    const args = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    const { code, stdout, stderr } = await plane.try(args, rendered);
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(stdout.trim().split("\n").length).toBeGreaterThan(15);
  });

  it("pass helm lint --strict, and name each object once", async () => {
    expect(await plane.helmed("lint", "--strict", CHART, "--values", values)).toContain("0 chart(s) failed");
    const rendered = await plane.helmed("template", set, CHART, "--values", values);
    const named = [...rendered.matchAll(/^kind: (\w+)\nmetadata:\n {2}name: (\S+)/gm)].map(
      ([, kind, name]) => `${kind}/${name}`,
    );
    expect(named.length).toBeGreaterThan(15);
    expect(new Set(named).size).toBe(named.length);
  });

  it("give no pod a privilege: not root, a root file system that is read only, and bounds on what it takes", async () => {
    const rendered = await plane.helmed("template", set, CHART, "--no-hooks", "--values", values);
    const args = ["apply", "--dry-run=server", "-o", "json", "-f", "-"];
    const { items } = JSON.parse(await plane.kubectl(args, rendered));
    const specs = items.map(({ spec, kind }: Json) => (kind === "Pod" ? spec : spec?.template?.spec)).filter(Boolean);
    expect(specs.length).toBeGreaterThan(3);
    for (const spec of specs) {
      expect(spec.securityContext).toMatchObject({ runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } });
      for (const container of [...spec.containers, ...(spec.initContainers ?? [])]) {
        expect(container.securityContext).toMatchObject({
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ["ALL"] },
        });
        expect(container.resources.requests, container.name).toBeDefined();
        expect(container.resources.limits?.memory, container.name).toBeDefined();
      }
    }
  });
});

describe("a trial on one machine", () => {
  it("comes up, all of it, and goes without leaving anything but what was made for customers", async () => {
    await install("small");
    const all = await until(
      () => plane.list("pods", "-n", "small"),
      (items) => items.length === 6 && running(items),
      { what: "gateway, two workers, jobs, Redis and NATS run" },
    );
    expect(all.every(({ spec }) => spec.nodeName === "plain")).toBe(true);
    await until(
      () => plane.list("endpointslices", "-n", "small", "-l", "kubernetes.io/service-name=small-atelier-workers"),
      (slices) => slices.flatMap(({ endpoints }) => endpoints ?? []).length === 2,
      { what: "both workers have an address in the headless service" },
    );

    await plane.helmed("uninstall", "small", "--namespace", "small");
    await until(
      () => plane.list("pods", "-n", "small"),
      (items) => items.length === 0,
    );
    const left = await plane.list("all,secrets,configmaps,networkpolicies,poddisruptionbudgets", "-n", "small");
    expect(left.map(({ kind, metadata }) => `${kind}/${metadata.name}`)).toEqual(["ConfigMap/kube-root-ca.crt"]);
    const claims = await plane.list("persistentvolumeclaims", "-n", "small");
    expect(claims.map(({ metadata }) => metadata.name).sort()).toEqual([
      "data-small-atelier-nats-0",
      "small-atelier-objects",
    ]);
  });
});

describe("nodes of four A10 and spot machines", () => {
  beforeAll(() => install("a10-cluster"));

  it("have one worker for each GPU, on A10 nodes that are not spot, spread over them", async () => {
    await plane.kubectl([
      "scale",
      "deployment",
      "a10-cluster-atelier-worker-interactive",
      "-n",
      "a10-cluster",
      "--replicas=6",
    ]);
    const workers = await until(
      () => plane.list("pods", "-n", "a10-cluster", "-l", "atelier.dev/pool=interactive"),
      (items) => items.length === 6 && running(items),
      { what: "six workers run" },
    );
    const byNode = Map.groupBy(workers, ({ spec }) => spec.nodeName);
    expect([...byNode].map(([node, on]) => [node, on.length]).sort()).toEqual([
      ["a10-1", 3],
      ["a10-2", 3],
    ]);
    for (const { spec } of workers) expect(spec.containers[0].resources.limits["nvidia.com/gpu"]).toBe("1");
  });

  it("leave the ninth worker without a GPU waiting, and say why", async () => {
    await plane.kubectl([
      "scale",
      "deployment",
      "a10-cluster-atelier-worker-interactive",
      "-n",
      "a10-cluster",
      "--replicas=9",
    ]);
    const waiting = await until(
      async () => (await pods("a10-cluster", "worker")).filter(({ status }) => status.phase === "Pending"),
      (items) =>
        items.length === 1 && items[0].status.conditions?.some(({ reason }: Json) => reason === "Unschedulable"),
      { what: "one worker of nine waits" },
    );
    const { message } = waiting[0].status.conditions.find(({ reason }: Json) => reason === "Unschedulable");
    expect(message).toContain("Insufficient nvidia.com/gpu");
    await plane.kubectl([
      "scale",
      "deployment",
      "a10-cluster-atelier-worker-interactive",
      "-n",
      "a10-cluster",
      "--replicas=2",
    ]);
  });

  it("take bulk workers on the spot machines only, which gateways do not send requests to", async () => {
    await plane.kubectl([
      "scale",
      "deployment",
      "a10-cluster-atelier-worker-bulk",
      "-n",
      "a10-cluster",
      "--replicas=3",
    ]);
    const bulk = await until(
      () => plane.list("pods", "-n", "a10-cluster", "-l", "atelier.dev/pool=bulk"),
      (items) => items.length === 3 && running(items),
      { what: "three bulk workers run" },
    );
    expect(new Set(bulk.map(({ spec }) => spec.nodeName))).toEqual(new Set(["a10-spot"]));
    expect(bulk[0].spec.terminationGracePeriodSeconds).toBe(30);
    const slices = await plane.list(
      "endpointslices",
      "-n",
      "a10-cluster",
      "-l",
      "kubernetes.io/service-name=a10-cluster-atelier-workers",
    );
    const addresses = slices.flatMap(({ endpoints }) => endpoints ?? []).map(({ targetRef }: Json) => targetRef.name);
    expect(addresses.some((name: string) => name.includes("bulk"))).toBe(false);
    expect(addresses.length).toBeGreaterThan(0);
  });

  it("keep gateways off the GPU nodes", async () => {
    const gateways = await until(
      () => pods("a10-cluster", "gateway"),
      (items) => items.length === 3 && running(items),
    );
    expect(new Set(gateways.map(({ spec }) => spec.nodeName))).toEqual(new Set(["plain"]));
  });

  it("are upgraded and rolled back", async () => {
    const values = join(CHART, "ci/a10-cluster-values.yaml");
    const set = ["--namespace", "a10-cluster", "--values", values];
    await plane.helmed("upgrade", "a10-cluster", CHART, ...set, "--set", "gateway.config.ATELIER_LOG_LEVEL=debug");
    const level = async () => {
      const { spec } = await plane.get("deployment", "a10-cluster-atelier-gateway", "-n", "a10-cluster");
      return spec.template.spec.containers[0].env.find(({ name }: Json) => name === "ATELIER_LOG_LEVEL")?.value;
    };
    expect(await level()).toBe("debug");
    await plane.helmed("rollback", "a10-cluster", "1", "--namespace", "a10-cluster");
    expect(await level()).toBeUndefined();
  });

  it("keep the token that services show each other over an upgrade", async () => {
    const token = async () =>
      (await plane.get("secret", "a10-cluster-atelier-internal", "-n", "a10-cluster")).data.token;
    const before = await token();
    const values = join(CHART, "ci/a10-cluster-values.yaml");
    await plane.helmed("upgrade", "a10-cluster", CHART, "--namespace", "a10-cluster", "--values", values);
    expect(await token()).toBe(before);
  });

  afterAll(() => plane.helmed("uninstall", "a10-cluster", "--namespace", "a10-cluster"));
});

describe("two kinds of GPU", () => {
  it("have each pool on its own", async () => {
    await install("multi-gpu");
    await plane.kubectl(["create", "-f", "-", "-n", "multi-gpu"], {
      apiVersion: "v1",
      kind: "PersistentVolumeClaim",
      metadata: { name: "models" },
      spec: { accessModes: ["ReadWriteMany"], resources: { requests: { storage: "10Gi" } } },
    });
    for (const [pool, replicas] of [
      ["a10", 2],
      ["h100", 4],
    ] as const) {
      await plane.kubectl([
        "scale",
        "deployment",
        `multi-gpu-atelier-worker-${pool}`,
        "-n",
        "multi-gpu",
        `--replicas=${replicas}`,
      ]);
    }
    const workers = await until(
      () => pods("multi-gpu", "worker"),
      (items) => items.length === 6 && running(items),
      { what: "six workers run" },
    );
    for (const { metadata, spec } of workers) {
      const pool = metadata.labels["atelier.dev/pool"];
      expect(spec.nodeName.startsWith(pool), `${metadata.name} on ${spec.nodeName}`).toBe(true);
      expect(spec.containers[0].image).toContain("atelier-worker-cuda");
    }
  });
});

describe("notes and test of a release", () => {
  it("say the next command, and ask the gateway", async () => {
    const notes = await plane.helmed("status", "multi-gpu", "--namespace", "multi-gpu", "--output", "json");
    expect(JSON.parse(notes).info.notes).toContain("helm test multi-gpu --namespace multi-gpu");
    const hooks = await plane.helmed("get", "hooks", "multi-gpu", "--namespace", "multi-gpu");
    const { code, stderr } = await plane.try(
      ["apply", "--dry-run=server", "--validate=strict", "-n", "multi-gpu", "-f", "-"],
      hooks,
    );
    expect(stderr).toBe("");
    expect(code).toBe(0);
  });
});
