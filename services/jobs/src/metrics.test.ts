import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type JobsWorld, startJobs } from "./testing/jobs-world.ts";

let world: JobsWorld;
beforeAll(async () => {
  world = await startJobs();
});
afterAll(() => world.stop());

describe("the metrics of bulk jobs", () => {
  it("tell of items: where they are, how they ended, and what they took and cost", async () => {
    await submit("prompt\na\nb\nc\nd\n");
    await seriesWhen("atelier_jobs_queue_items", (series) => series['class="bulk",model="tiny",held="false"'] === 4);
    expect(await seriesOf("atelier_jobs_items")).toMatchObject({ 'state="queued"': 4, 'state="done"': 0 });
    expect(await seriesOf("atelier_jobs_backlog_device_seconds")).toEqual({ 'class="bulk",model="tiny"': 4 });
    expect((await seriesOf("atelier_jobs_queue_oldest_seconds"))['class="bulk",model="tiny"']).toBeGreaterThanOrEqual(
      0,
    );

    await world.work.make(2);
    const [failing, dying] = await world.work.take(2);
    await world.work.fail(failing!);
    await world.work.bury(dying!);
    const ended = await seriesWhen("atelier_jobs_items_ended_total", (series) => series['state="failed"'] === 2);
    expect(ended).toEqual({ 'state="done"': 2, 'state="failed"': 2 });
    expect(await seriesOf("atelier_jobs_dead_letters_total")).toEqual({ "": 1 });
    expect(await seriesOf("atelier_jobs_redeliveries_total")).toEqual({ "": 4 }); // the dying one had 5 attempts
    // 12.5 ms of a device each, at 3.6 EUR an hour.
    expect(await seriesOf("atelier_jobs_device_seconds_total")).toEqual({ 'model="tiny"': 0.025 });
    const cost = await seriesOf("atelier_jobs_image_cost_total");
    expect(Object.keys(cost)).toEqual(['model="tiny",currency="EUR"']);
    expect(cost['model="tiny",currency="EUR"']).toBeCloseTo(0.000025, 12);
    expect(await seriesOf("atelier_jobs_jobs")).toMatchObject({ 'status="done"': 1 });
  });

  it("grow no series by what callers make up", async () => {
    const barrage = async (odd: string) => {
      const caller = { tenant: odd, keyId: odd };
      await world.ask(`/${odd}`, { caller });
      await world.ask(`/v1/jobs/${odd}`, { caller });
      await world.ask(`/v1/presets/${odd}`, { method: "DELETE", caller });
      await world.ask("/v1/jobs", { method: "PROPFIND", caller });
      await world.ask(`/${odd}`, { method: odd.startsWith("a") ? "PURGE" : "REPORT", caller });
      await world.ask("/v1/jobs", { method: "POST", caller, headers: { "content-type": `text/${odd}` }, body: odd });
      await world.ask(`/v1/jobs?name=${odd}`, { method: "POST", caller, headers: CSV, body: `${odd}\nx\n` });
    };
    await barrage("a-hostile-first");
    const known = await quiet();
    for (let i = 0; i < 15; i++) await barrage(`${i % 2 === 0 ? "a" : "b"}-hostile-${i}`);
    const now = await quiet();
    expect(now).toEqual(known);
    expect(now.join("\n")).not.toMatch(/hostile/);
    expect(now.join("\n")).toContain('method="other"');
  });
});

const CSV = { "content-type": "text/csv" };

async function submit(sheet: string): Promise<void> {
  const answer = await world.ask("/v1/jobs?name=test", { method: "POST", headers: CSV, body: sheet });
  expect(answer.status).toBe(201);
}

async function lines(): Promise<readonly string[]> {
  const text = await (await fetch(`${world.url}/metrics`)).text();
  return text.split("\n").filter((line) => line.startsWith("atelier_") && !line.includes('route="/metrics"'));
}

async function seriesOf(name: string): Promise<Readonly<Record<string, number>>> {
  const own = (await lines()).map((line) => new RegExp(`^${name}\\{(.*?),?service="jobs"\\} (.+)$`).exec(line));
  return Object.fromEntries(own.flatMap((parts) => (parts === null ? [] : [[parts[1]!, Number(parts[2])]])));
}

async function seriesWhen(name: string, is: (series: Readonly<Record<string, number>>) => boolean) {
  for (;;) {
    const series = await seriesOf(name);
    if (is(series)) return series;
    await sleep(20);
  }
}

/** The names and labels of all series, once answers are counted: each is when its connection is done with it. */
async function quiet(): Promise<readonly string[]> {
  await sleep(50);
  return (await lines()).map((line) => line.replace(/ \S+$/, ""));
}
