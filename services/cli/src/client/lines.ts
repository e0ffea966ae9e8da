/** The lines of a text in UTF-8, as it comes in; empty ones are left out. */
export async function* lines(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of body) {
    const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = parts.pop()!;
    for (const line of parts) if (line !== "") yield line;
  }
  if (rest !== "") yield rest;
}
