/**
 * How CLIP prepares text before byte-pair merging: clean it, then cut it into pieces that merges never cross.
 *
 * Written out here rather than read from `tokenizer.json`: transformers too takes these steps from its CLIPTokenizer
 * class and not from the file, and the JavaScript library that could follow the file differs in three details, noted
 * below, from the Rust one that transformers runs. Compared with that one for every code point in several contexts, ids
 * differ only for 4,659 rare ones that Unicode has added lately: Node 24 knows version 17, tokenizers 0.23 an older one.
 *
 * Source: transformers 5, models/clip/tokenization_clip.py.
 */
export function clipPieces(normalized: string): string[] {
  return (normalized.match(PIECE) ?? []).flatMap((piece) => piece.match(WITHIN_PIECE) ?? []);
}

/** NFC, white space to single spaces, lower case. */
export function clipNormalize(text: string): string {
  return text
    .normalize("NFC")
    .replace(/\p{White_Space}+/gu, " ") // JavaScript's \s counts U+FEFF in, and U+0085 out.
    .replaceAll("Σ", "σ") // toLowerCase() makes a word's last Σ a ς; the Rust library lowers each letter by itself.
    .toLowerCase();
}

/** The special tokens' names, contractions, runs of letters, single digits, and runs of anything else. */
const PIECE = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;

/** GPT-2's pattern, which the byte-level step applies once more. Only a special token's name comes apart by it. */
const WITHIN_PIECE = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+/gu;

/**
 * The 256 bytes as printable characters, as GPT-2 has them: a printable byte stands for itself, the others take the
 * code points from 256 on.
 *
 * Source: openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
 */
const BYTE_CHARACTERS: readonly string[] = (() => {
  let spare = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (0x21 <= byte && byte <= 0x7e) || (0xa1 <= byte && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : spare++);
  });
})();

const encoder = new TextEncoder();

/** A piece as byte-pair merging reads it: one printable character for each byte of its UTF-8. */
export function byteCharacters(piece: string): string {
  return Array.from(encoder.encode(piece), (byte) => BYTE_CHARACTERS[byte]!).join("");
}
