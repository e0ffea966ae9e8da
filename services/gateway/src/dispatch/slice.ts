/** Neighbouring pictures of a request that one call to a worker is to make. */
export interface Slice {
  /** Which of the request's pictures comes first. */
  readonly first: number;
  readonly count: number;
}

/** The fewest slices that hold exactly the pictures `indexes`, which ascend. `cutBefore` ends a slice where it says so. */
export function slicesOf(
  indexes: readonly number[],
  cutBefore: (index: number, slice: Slice) => boolean = () => false,
): readonly Slice[] {
  const slices: Slice[] = [];
  for (const index of indexes) {
    const last = slices.at(-1);
    if (last !== undefined && index === last.first + last.count && !cutBefore(index, last)) {
      slices[slices.length - 1] = { first: last.first, count: last.count + 1 };
    } else {
      slices.push({ first: index, count: 1 });
    }
  }
  return slices;
}

export function indexesOf({ first, count }: Slice): readonly number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}
