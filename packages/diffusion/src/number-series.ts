/**
 * The few series that schedules are made of, with numpy's and torch's order of operations: a timestep that lands on
 * a half is rounded by the last bit of what came before.
 */

/** `count` numbers from `first` to `last`, both included, in double precision. Source: numpy.linspace. */
export function linspace(first: number, last: number, count: number): number[] {
  const step = (last - first) / (count - 1);
  return Array.from({ length: count }, (_, i) =>
    i > 0 && i === count - 1 ? last : i === 0 ? first : i * step + first,
  );
}

/** The same in float32, counted from the nearer end. Source: torch.linspace. */
export function linspaceFloat32(first: number, last: number, count: number): Float32Array {
  const from = Math.fround(first);
  const to = Math.fround(last);
  const step = Math.fround(Math.fround(to - from) / (count - 1));
  return Float32Array.from({ length: count }, (_, i) =>
    i < count / 2 ? from + step * i : to - step * (count - 1 - i),
  );
}

/** From `first` towards `end`, `end` left out. Source: numpy.arange. */
export function arange(first: number, end: number, step: number): number[] {
  const exactStep = first + step - first; // numpy takes the difference of its first two entries
  return Array.from({ length: Math.ceil((end - first) / step) }, (_, i) => first + i * exactStep);
}

/** To the nearest whole number, and from the middle to the even one. */
export function roundHalfEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** `values` read at a fractional `index`, on the straight line between neighbours; flat beyond the ends. */
export function interpolate(values: ArrayLike<number>, index: number): number {
  const last = values.length - 1;
  if (index <= 0) return values[0]!;
  if (index >= last) return values[last]!;
  const below = Math.floor(index);
  return values[below]! + (values[below + 1]! - values[below]!) * (index - below);
}
