import { afterEach } from "vitest";

const ends: (() => unknown)[] = [];

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

/** Runs `end` after the test that calls it, last one first. */
export function atEnd(end: () => unknown): void {
  ends.push(end);
}

/** What `starting` resolves to, stopped after the test that calls it. */
export async function running<T extends { stop(): Promise<unknown> }>(starting: Promise<T>): Promise<T> {
  const started = await starting;
  atEnd(() => started.stop());
  return started;
}

/** Looks each 20 ms. @throws where `condition` does not come to hold in time. */
export async function until(condition: () => boolean | Promise<boolean>, withinMs = 10_000): Promise<void> {
  const untilMs = Date.now() + withinMs;
  while (!(await condition())) {
    if (Date.now() > untilMs) throw new Error(`not within ${withinMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
