import { createParser, type EventSourceMessage } from "eventsource-parser";

export interface ServerEvent {
  readonly name: string;
  readonly data: string;
  /** Undefined where it has none. */
  readonly id?: string;
}

/** The server-sent events in `body`, until it ends; one that was cut off is left out. */
export async function* serverEvents(body: AsyncIterable<Uint8Array>): AsyncGenerator<ServerEvent> {
  let complete: EventSourceMessage[] = [];
  const parser = createParser({ onEvent: (event) => complete.push(event) });
  const decoder = new TextDecoder();
  for await (const chunk of body) {
    parser.feed(decoder.decode(chunk, { stream: true }));
    for (const { event, data, id } of complete)
      yield { name: event ?? "message", data, ...(id !== undefined && { id }) };
    complete = [];
  }
}
