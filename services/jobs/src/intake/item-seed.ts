/**
 * The seed of an item whose row names none: its index put through a mixer that every base seed makes a different one of,
 * so that neighbours have nothing in common. 0..2^32-1, as drawn seeds are.
 *
 * Source: the finalizer of MurmurHash3 (Appleby), over both halves of the base seed and the index.
 */
export function itemSeed(baseSeed: number, index: number): number {
  const low = mix(baseSeed >>> 0 || 0x9e3779b9);
  const high = mix(Math.floor(baseSeed / 2 ** 32) ^ low);
  return mix(high ^ Math.imul(index + 1, 0x9e3779b1));
}

function mix(value: number): number {
  let z = value >>> 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return (z ^ (z >>> 16)) >>> 0;
}
