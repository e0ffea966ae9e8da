/**
 * Which of `offers` (media types) an Accept header wants most; undefined when it rules them all out. Among offers that
 * are wanted equally the more specifically named wins, then the earlier offer. No header wants everything.
 *
 * Source: RFC 9110, section 12.5.1.
 */
export function chooseMediaType(accept: string | undefined, offers: readonly string[]): string | undefined {
  const ranges = parseAccept(accept ?? "*/*");
  let best: { offer: string; quality: number; specificity: number } | undefined;
  for (const offer of offers) {
    const match = ranges
      .map((range) => ({ ...range, specificity: specificityOf(range.type, offer) }))
      .filter(({ specificity }) => specificity > 0)
      .sort((a, b) => b.specificity - a.specificity)[0];
    if (match === undefined || match.quality === 0) continue;
    const { quality, specificity } = match;
    const better =
      best === undefined || quality > best.quality || (quality === best.quality && specificity > best.specificity);
    if (better) best = { offer, quality, specificity };
  }
  return best?.offer;
}

interface MediaRange {
  readonly type: string;
  /** 0..1; 0 refuses. */
  readonly quality: number;
}

function parseAccept(header: string): readonly MediaRange[] {
  const ranges = header.split(",").map((part) => {
    const [type = "", ...parameters] = part.split(";").map((text) => text.trim().toLowerCase());
    const q = parameters.find((parameter) => parameter.startsWith("q="));
    const quality = q === undefined ? 1 : Number(q.slice(2));
    return { type, quality: Number.isFinite(quality) ? Math.min(1, Math.max(0, quality)) : 1 };
  });
  const named = ranges.filter(({ type }) => type !== "");
  return named.length === 0 ? [{ type: "*/*", quality: 1 }] : named;
}

/** How closely `range` names `offer`: 0 not at all, 1 by anything, 2 by its kind, 3 itself. */
function specificityOf(range: string, offer: string): number {
  if (range === offer) return 3;
  if (range === `${offer.split("/")[0]}/*`) return 2;
  return range === "*/*" ? 1 : 0;
}
