import { arange, linspace, roundHalfEven } from "./number-series.ts";
import type { SchedulerConfig } from "./scheduler-config.ts";

export type Spacing = NonNullable<SchedulerConfig["timestep_spacing"]>;

interface SpacingOptions {
  readonly spacing: Spacing;
  readonly steps: number;
  readonly trainSteps: number; // length of the training schedule
  readonly stepsOffset: number; // shifts "leading" towards noise
}

/**
 * `steps` training timesteps from noisy to clean, the first and the last of the schedule among them where the spacing
 * has them: for Euler (fractional for "linspace") and, rounded, for DDIM.
 *
 * Source: Lin et al., arXiv:2305.08891, table 2.
 */
export function timestepsWithEnd({ spacing, steps, trainSteps, stepsOffset }: SpacingOptions): number[] {
  switch (spacing) {
    case "linspace":
      return linspace(0, trainSteps - 1, steps).reverse();
    case "leading": {
      const stride = Math.floor(trainSteps / steps);
      return Array.from({ length: steps }, (_, i) => (steps - 1 - i) * stride + stepsOffset);
    }
    case "trailing":
      return trailing(trainSteps, trainSteps / steps);
  }
}

/**
 * The same for the multistep solvers (DPM-Solver++, UniPC): `steps + 1` points of which the cleanest is left out,
 * since their last step goes to a clean image from the point before it.
 *
 * `lastTimestep` is `trainSteps`, or less where the noisiest end is cut off.
 */
export function timestepsWithoutEnd(options: SpacingOptions & { readonly lastTimestep: number }): number[] {
  const { spacing, steps, trainSteps, stepsOffset, lastTimestep } = options;
  switch (spacing) {
    case "linspace":
      return linspace(0, lastTimestep - 1, steps + 1)
        .map(roundHalfEven)
        .reverse()
        .slice(0, -1);
    case "leading": {
      const stride = Math.floor(lastTimestep / (steps + 1));
      return Array.from({ length: steps }, (_, i) => (steps - i) * stride + stepsOffset);
    }
    case "trailing":
      return trailing(lastTimestep, trainSteps / steps);
  }
}

/**
 * From the noisiest timestep down by `stride`. For a few counts (61, 103, 121, ...) the last bit of `stride` lets one
 * entry too many in, at timestep -1; diffusers feeds it to the model, we leave it out.
 */
function trailing(lastTimestep: number, stride: number): number[] {
  return arange(lastTimestep, 0, -stride)
    .map((t) => roundHalfEven(t) - 1)
    .filter((t) => t >= 0);
}
