import { ServingError } from "@atelier/core";
import { StoreUnavailable } from "../shared/shared-store.ts";

/** What `use` gives. Rejects with OVERLOADED where the book of use is away. */
export async function orUnavailable<T>(use: () => Promise<T>): Promise<T> {
  try {
    return await use();
  } catch (cause) {
    if (!(cause instanceof StoreUnavailable)) throw cause;
    throw new ServingError("OVERLOADED", "the book of use cannot be reached; nothing in it is lost", {
      cause,
      retryAfterMs: 2_000,
    });
  }
}
