/**
 * Whether a Prefer header asks for an answer at once, with the work going on behind it.
 *
 * Source: RFC 7240, sections 2 and 4.1.
 */
export function prefersAsync(header: string | readonly string[] | undefined): boolean {
  const preferences = [header ?? ""].flat().join(",").split(",");
  return preferences.some((preference) => preference.split(";")[0]!.trim().toLowerCase() === "respond-async");
}
