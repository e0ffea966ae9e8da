import { ServingError } from "@atelier/core";

/** A closed list's code, or the class's name: neither holds what a caller wrote. */
export function errorCodeOf(error: unknown): string {
  if (error instanceof ServingError) return error.code;
  return error instanceof Error ? error.name : "unknown";
}
