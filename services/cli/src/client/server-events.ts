export interface ServerEvent {
  readonly name: string;
  readonly data: string;
}

/**
 * The server-sent events in `body`, until it ends. Lines end in LF or CRLF; ids and retry times are passed over, since
 * a generation is not reconnected to.
 *
 * Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream".
 */
export async function* serverEvents(body: AsyncIterable<Uint8Array>): AsyncGenerator<ServerEvent> {
  let name = "message";
  let data: string[] = [];
  for await (const line of linesOf(body)) {
    if (line === "") {
      if (data.length > 0) yield { name, data: data.join("\n") };
      name = "message";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    const field = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
}

/** Looks for ends in new text only: a picture is one line of megabytes. node:readline would also split at U+2028. */
async function* linesOf(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let parts: string[] = [];
  for await (const chunk of body) {
    const pieces = decoder.decode(chunk, { stream: true }).split("\n");
    const last = pieces.pop()!;
    for (const piece of pieces) {
      yield [...parts, piece].join("").replace(/\r$/, "");
      parts = [];
    }
    parts.push(last);
  }
}
