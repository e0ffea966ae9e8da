/** A statement that only a bug can make false. Throws, and nobody catches it to carry on. */
export function invariant(condition: unknown, statement: string): asserts condition {
  if (!condition) throw new InvariantError(statement);
}

export class InvariantError extends Error {
  override readonly name = "InvariantError";

  constructor(statement: string) {
    super(`invariant broken: ${statement}`);
  }
}
