/**
 * Names a file for whoever saves it. The plain name is for programs that know no other.
 *
 * Source: RFC 6266, section 4; RFC 8187.
 */
export function contentDisposition(name: string, kind: "attachment" | "inline" = "attachment"): string {
  const safe = name
    .replaceAll(/[\\/:*?"<>|\p{Cc}]/gu, "_")
    .slice(0, 200)
    .toWellFormed();
  const plain = safe.replaceAll(/[^ -~]/g, "_").replaceAll("%", "_");
  const encoded = encodeURIComponent(safe).replaceAll(
    /['()*]/g,
    (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  return `${kind}; filename="${plain}"; filename*=UTF-8''${encoded}`;
}
