import { alphasCumprod, levelOfAlphaCumprod, noiseRatios } from "./noise-schedule.ts";
import { roundHalfEven } from "./number-series.ts";
import type { SchedulerConfig } from "./scheduler-config.ts";
import { exponentialSigmas, karrasSigmas, sigmasAt, timestepOf } from "./sigma-schedule.ts";
import { timestepsWithoutEnd } from "./timestep-spacing.ts";

/** `sigmas[i]` is the noise-to-signal ratio before step `i`; one more entry than timesteps, the last usually 0. */
export interface SigmaSchedule {
  readonly timesteps: Float32Array;
  readonly sigmas: Float32Array;
}

/** Where the two multistep solvers of diffusers part ways. */
interface MultistepVariant {
  /** Cuts off the noisiest timesteps, those whose lambda is below this. */
  readonly lambdaMin: number;
  /** Where Karras spacing falls between two timesteps: to the nearer, or to the cleaner one. */
  readonly karrasTimestep: (t: number) => number;
  /** With `final_sigmas_type` "sigma_min": the ratio that the last step goes to, of a spaced schedule. */
  readonly finalSigma: "of the training schedule" | "of the last step";
}

/** The noise levels that DPM-Solver++ steps along. */
export function dpmSolverSchedule(config: SchedulerConfig, steps: number): SigmaSchedule {
  return multistepSchedule(config, steps, {
    lambdaMin: config.lambda_min_clipped ?? -Infinity,
    karrasTimestep: config.beta_schedule === "squaredcos_cap_v2" ? Math.trunc : roundHalfEven,
    finalSigma: "of the training schedule",
  });
}

/** The noise levels that UniPC steps along. */
export function uniPcSchedule(config: SchedulerConfig, steps: number): SigmaSchedule {
  return multistepSchedule(config, steps, {
    lambdaMin: -Infinity,
    karrasTimestep: roundHalfEven,
    finalSigma: "of the last step",
  });
}

function multistepSchedule(config: SchedulerConfig, steps: number, variant: MultistepVariant): SigmaSchedule {
  const alphas = alphasCumprod(config);
  const ratios = noiseRatios(alphas, config.rescale_betas_zero_snr ?? false);
  const spaced = spacedSigmas(config, steps, ratios);
  if (spaced !== null) {
    const toTimestep = config.use_karras_sigmas ? variant.karrasTimestep : Math.trunc;
    const timesteps = spaced.map((sigma) => toTimestep(timestepOf(sigma, ratios)));
    return close(config, timesteps, spaced, variant.finalSigma === "of the last step" ? spaced.at(-1)! : ratios[0]!);
  }
  const timesteps = timestepsWithoutEnd({
    spacing: config.timestep_spacing ?? "linspace",
    steps,
    trainSteps: alphas.length,
    stepsOffset: config.steps_offset ?? 0,
    lastTimestep: alphas.filter((alpha) => levelOfAlphaCumprod(alpha).lambda >= variant.lambdaMin).length,
  });
  return close(config, timesteps, sigmasAt(timesteps, ratios), ratios[0]!);
}

/** Sigmas that follow a rule of their own rather than the timesteps; null where the configuration asks for none. */
function spacedSigmas(config: SchedulerConfig, steps: number, ratios: Float32Array): number[] | null {
  const min = config.sigma_min ?? ratios[0]!;
  const max = config.sigma_max ?? ratios.at(-1)!;
  if (config.use_karras_sigmas) return karrasSigmas({ min, max, steps });
  if (config.use_exponential_sigmas) return exponentialSigmas({ min, max, steps });
  return null;
}

function close(config: SchedulerConfig, timesteps: number[], sigmas: number[], least: number): SigmaSchedule {
  const last = config.final_sigmas_type === "sigma_min" ? least : 0;
  return { timesteps: Float32Array.from(timesteps), sigmas: Float32Array.from([...sigmas, last]) };
}
