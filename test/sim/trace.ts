import { type Random, seededRandom } from "@atelier/core";
import { GpuTimes, type SimulatedGpu } from "@atelier/worker";

/** A model as the simulated fleet serves it. */
export interface SimModel {
  readonly id: string;
  readonly family: "sd1" | "sdxl";
  readonly nativeSide: number;
  /** Share of the requests. */
  readonly share: number;
  readonly loadMs: number;
  readonly sizes: readonly (readonly [width: number, height: number])[];
}

/** Two families, as published; a brand's own fine-tune of each is asked for less. */
export const MODELS: readonly SimModel[] = [
  {
    id: "sd15",
    family: "sd1",
    nativeSide: 512,
    share: 0.5,
    loadMs: 6_000,
    sizes: [
      [384, 384],
      [512, 512],
      [512, 768],
      [768, 768],
    ],
  },
  {
    id: "sdxl",
    family: "sdxl",
    nativeSide: 1024,
    share: 0.2,
    loadMs: 20_000,
    sizes: [
      [768, 768],
      [1024, 1024],
    ],
  },
  {
    id: "sd15-brand",
    family: "sd1",
    nativeSide: 512,
    share: 0.2,
    loadMs: 6_000,
    sizes: [
      [512, 512],
      [512, 768],
    ],
  },
  {
    id: "sdxl-brand",
    family: "sdxl",
    nativeSide: 1024,
    share: 0.1,
    loadMs: 20_000,
    sizes: [[1024, 1024]],
  },
];

const STEPS = [8, 20, 25, 30, 50];

export interface SimRequest {
  readonly id: number;
  readonly atMs: number;
  readonly model: SimModel;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  /** 2 with guidance; few-step models run without. */
  readonly rows: 1 | 2;
  /** Which gateway it comes to. */
  readonly gateway: number;
  /** Milliseconds from arrival to answer on a worker that does nothing else and has the model. */
  readonly serviceMs: number;
}

export const ARRIVALS = ["poisson", "bursty"] as const;
export type Arrivals = (typeof ARRIVALS)[number];

/** Bursts: for a fifth of the time, some seconds each, twice as many come as in the rest. */
const BURST = { times: 2, shareOfTime: 0.2, lastsMs: 5_000 };

export interface TraceOptions {
  readonly seed: number;
  readonly requests: number;
  readonly arrivals: Arrivals;
  /** Mean, over the whole fleet. */
  readonly perSecond: number;
  readonly gateways: number;
  readonly gpu: SimulatedGpu;
}

/** Requests in the order of their arrival, the same for one seed every time. */
export function drawTrace(options: TraceOptions): readonly SimRequest[] {
  const random = seededRandom(options.seed);
  const nextMs = arrivalTimes(options, random);
  return Array.from({ length: options.requests }, (_, id) => {
    const atMs = nextMs();
    const model = drawModel(random);
    const [width, height] = draw(model.sizes, random);
    const steps = draw(STEPS, random);
    const rows = steps <= 8 ? 1 : 2;
    const gateway = Math.floor(random.next() * options.gateways);
    return {
      ...{ id, atMs, model, width, height, steps, rows, gateway },
      serviceMs: serviceMs({ model, width, height, steps, rows }, options.gpu),
    };
  });
}

type Picture = Pick<SimRequest, "model" | "width" | "height" | "steps" | "rows">;

/** What a request takes on a worker of its own. */
function serviceMs(request: Picture, gpu: SimulatedGpu): number {
  const times = timesOf(request, gpu);
  const area = areaOf(request);
  return times.textEncodeMs(2) + denoiseMs(request, gpu) + times.decodeMs({ area, pictures: 1 });
}

/** Of that, its steps. */
export function denoiseMs(request: Picture, gpu: SimulatedGpu): number {
  return request.steps * timesOf(request, gpu).stepMs({ area: areaOf(request), rows: request.rows });
}

function timesOf({ model }: Picture, gpu: SimulatedGpu): GpuTimes {
  return new GpuTimes(gpu, model.family === "sdxl" ? "sdxl" : "sd15");
}

/** Latent places. */
export function areaOf({ width, height }: Pick<SimRequest, "width" | "height">): number {
  return (width / 8) * (height / 8);
}

/**
 * Poisson: exponential gaps. Bursty: a Poisson process whose rate is switched between two by exponential times (a
 * Markov-modulated Poisson process), with the same mean.
 */
function arrivalTimes({ arrivals, perSecond }: TraceOptions, random: Random): () => number {
  let nowMs = 0;
  if (arrivals === "poisson")
    return () => {
      nowMs += exponential(1000 / perSecond, random);
      return nowMs;
    };
  const { times, shareOfTime, lastsMs } = BURST;
  const calm = perSecond / (1 - shareOfTime + shareOfTime * times);
  let burst = false;
  let untilMs = exponential((lastsMs * (1 - shareOfTime)) / shareOfTime, random);
  return () => {
    for (;;) {
      const rate = burst ? calm * times : calm;
      const atMs = nowMs + exponential(1000 / rate, random);
      if (atMs <= untilMs) {
        nowMs = atMs;
        return nowMs;
      }
      // Memoryless: what was drawn beyond the switch is drawn again at the other rate.
      nowMs = untilMs;
      burst = !burst;
      untilMs += exponential(burst ? lastsMs : (lastsMs * (1 - shareOfTime)) / shareOfTime, random);
    }
  };
}

function exponential(mean: number, random: Random): number {
  return -Math.log(1 - random.next()) * mean;
}

function draw<Item>(items: readonly Item[], random: Random): Item {
  return items[Math.floor(random.next() * items.length)]!;
}

function drawModel(random: Random): SimModel {
  let left = random.next();
  for (const model of MODELS) {
    left -= model.share;
    if (left < 0) return model;
  }
  return MODELS[0]!;
}
