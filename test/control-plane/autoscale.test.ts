import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Prometheus, startPrometheus } from "../support/prometheus.ts";
import { ExternalMetrics } from "./support/external-metrics.ts";
import { FLEET_VALUES, type Fleet, startFleet } from "./support/fleet.ts";
import { Load } from "./support/load.ts";
import { Plane, until } from "./support/plane.ts";
import { PodTargets } from "./support/pod-targets.ts";

const NODES = ["gpu-1", "gpu-2"];
const WORKERS_MAX = 5;
const DEPLOYMENT = "scale-atelier-worker-default";
const METRIC = "atelier_work_device_seconds_scale_atelier_default";

let plane: Plane;
let fleet: Fleet;
let prometheus: Prometheus;
let metrics: ExternalMetrics;
let targets: PodTargets;

beforeAll(async () => {
  plane = await Plane.start({
    nodes: NODES.map((name) => ({ name, gpus: 4, pods: "none" })),
    // A minute's worth of history in seconds: production has 15 s and 300 s.
    hpa: { syncMs: 1_000, downscaleStabilizationMs: 5_000 },
  });
  const values = {
    ...FLEET_VALUES,
    gateway: { ...FLEET_VALUES.gateway, replicas: 1 },
    worker: {
      ...FLEET_VALUES.worker,
      // As slow as the GPU is: few requests are much work.
      config: { ATELIER_SIMULATED_SPEED: 1 },
      autoscaling: {
        ...{ kind: "hpa", minReplicas: 1, maxReplicas: WORKERS_MAX, targetSeconds: 4, bulkTargetSeconds: 0 },
        ...{ scaleUpPodsPerMinute: 40, scaleDownStabilizationSeconds: 5 },
      },
    },
    monitoring: { adapterRules: { enabled: true } },
  };
  fleet = await startFleet(plane, { release: "scale", nodes: NODES, values, ready: 2 });
  targets = await PodTargets.start(plane, "default");
  prometheus = await startPrometheus({ scrapeConfigs: [targets.scrapeConfig], scrapeIntervalMs: 1_000 });
  metrics = await ExternalMetrics.start(plane, prometheus, "scale-atelier-prometheus-adapter");
});

afterAll(async () => {
  metrics?.stop();
  await prometheus?.stop();
  targets?.stop();
  await fleet?.stop();
  await plane?.stop();
});

const hpa = () => plane.get("hpa", DEPLOYMENT);
const workers = async () =>
  (await plane.list("pods", "-l", "app.kubernetes.io/component=worker")).filter(
    ({ metadata }) => metadata.deletionTimestamp === undefined,
  );

describe("a pool that is scaled on work", () => {
  it("is asked about through the API server's own metrics API", async () => {
    const path = `/apis/external.metrics.k8s.io/v1beta1/namespaces/default/${METRIC}`;
    const { stdout } = await until(
      () => plane.try(["get", "--raw", path]),
      ({ code, stdout }) => code === 0 && JSON.parse(stdout).items.length === 1,
      { withinMs: 60_000, what: "the metric has a value" },
    );
    expect(JSON.parse(stdout).items[0].metricName).toBe(METRIC);
    const { status } = await until(
      hpa,
      ({ status }) =>
        status.conditions?.some(({ type, status }: never) => type === "ScalingActive" && status === "True"),
      { what: "the HPA can compute" },
    );
    expect(status.desiredReplicas).toBe(1);
  });

  it("grows with the work under a peak, within its quota, and shrinks after it without failing a request", async () => {
    const sizes: number[] = [];
    const load = new Load({ url: fleet.gateways.url, callers: 16, steps: 30, side: 512 });
    await until(
      async () => {
        const { spec } = await plane.get("deployment", DEPLOYMENT);
        if (sizes.at(-1) !== spec.replicas) sizes.push(spec.replicas);
        return spec.replicas;
      },
      (replicas) => replicas === WORKERS_MAX,
      { withinMs: 90_000, everyMs: 500, what: "the pool is as large as it may be" },
    );
    expect(metrics.asked.get(METRIC)).toBeGreaterThan(4 * (WORKERS_MAX - 1));
    await until(
      async () => (await workers()).filter(({ metadata }) => fleet.kubelet.pod(metadata.name)?.ready).length,
      (ready) => ready === WORKERS_MAX,
      { withinMs: 60_000, what: "all workers are ready" },
    );
    await load.stop();
    await until(
      async () => {
        const { spec } = await plane.get("deployment", DEPLOYMENT);
        if (sizes.at(-1) !== spec.replicas) sizes.push(spec.replicas);
        return spec.replicas;
      },
      (replicas) => replicas === 1,
      { withinMs: 120_000, everyMs: 500, what: "the pool is as small as it may be" },
    );
    console.log(`${load.answers.length} requests, ${load.failures.length} failed; workers: ${sizes.join(" -> ")}`);
    expect(load.failures).toEqual([]);
    expect(Math.max(...sizes)).toBe(WORKERS_MAX);
    await until(workers, (left) => left.length === 1, { withinMs: 60_000, what: "one worker is left" });
    expect(fleet.kubelet.problems).toEqual([]);
  });
});
