/** Neighbouring pictures of a request that one call to a worker is to make. */
export interface Part {
  /** Which of the request's pictures comes first. */
  readonly first: number;
  readonly count: number;
}

/** The fewest parts that hold exactly the pictures `indexes`, which ascend. `cutBefore` ends a part where it says so. */
export function partsOf(
  indexes: readonly number[],
  cutBefore: (index: number, part: Part) => boolean = () => false,
): readonly Part[] {
  const parts: Part[] = [];
  for (const index of indexes) {
    const last = parts.at(-1);
    if (last !== undefined && index === last.first + last.count && !cutBefore(index, last)) {
      parts[parts.length - 1] = { first: last.first, count: last.count + 1 };
    } else {
      parts.push({ first: index, count: 1 });
    }
  }
  return parts;
}

export function indexesOf({ first, count }: Part): readonly number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}
