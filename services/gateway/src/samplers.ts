import { Sampler } from "@atelier/proto";

/** Samplers as HTTP names them, and as the wire does. */
const WIRE = {
  dpmpp_2m: Sampler.DPMPP_2M,
  dpmpp_2m_sde: Sampler.DPMPP_2M_SDE,
  euler: Sampler.EULER,
  euler_a: Sampler.EULER_A,
  ddim: Sampler.DDIM,
  unipc: Sampler.UNIPC,
  lcm: Sampler.LCM,
} as const;

export type SamplerName = keyof typeof WIRE;

export const SAMPLER_NAMES = Object.keys(WIRE) as [SamplerName, ...SamplerName[]];

/** Those whose noise levels can be spaced by Karras et al.; workers refuse it of the others. */
export const KARRAS_SAMPLERS: readonly SamplerName[] = ["dpmpp_2m", "dpmpp_2m_sde", "euler", "unipc"];

export function samplerToWire(name: SamplerName): Sampler {
  return WIRE[name];
}

/** Undefined for a sampler that this gateway does not know. */
export function samplerFromWire(sampler: Sampler): SamplerName | undefined {
  return SAMPLER_NAMES.find((name) => WIRE[name] === sampler);
}
