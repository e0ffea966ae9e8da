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

export function samplerToWire(name: SamplerName): Sampler {
  return WIRE[name];
}

/** Undefined for a sampler that this gateway does not know. */
export function samplerFromWire(sampler: Sampler): SamplerName | undefined {
  return SAMPLER_NAMES.find((name) => WIRE[name] === sampler);
}
