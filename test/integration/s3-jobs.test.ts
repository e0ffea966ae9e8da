import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type JobsWorld, startJobs } from "../../services/jobs/src/testing/jobs-world.ts";
import { S3_CREDENTIALS, S3_START_MAX_MS, type S3Process, startS3 } from "../support/s3.ts";

let s3: S3Process;
let world: JobsWorld;

beforeAll(async () => {
  for (const [name, value] of Object.entries(S3_CREDENTIALS)) vi.stubEnv(name, value);
  s3 = await startS3("pictures");
  world = await startJobs({
    ATELIER_OBJECTS: "s3://pictures/prod",
    ATELIER_S3_ENDPOINT: s3.endpoint,
    ATELIER_S3_PATH_STYLE: "true",
  });
}, S3_START_MAX_MS);
afterAll(async () => {
  await world.stop();
  await s3.stop();
  vi.unstubAllEnvs();
});

describe("a job whose pictures lie in a bucket", () => {
  it("sends whoever wants a picture to the bucket, by a link under the item's name, and keeps nothing once it is deleted", async () => {
    const submitted = await world.ask("/v1/jobs", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ name: "Frühling", items: [{ prompt: "杯子" }, { prompt: "a bowl" }] }),
    });
    expect(submitted.status).toBe(201);
    const { id } = (await submitted.json()) as { id: string };
    await world.work.make(2);
    await vi.waitFor(
      async () => expect(await (await world.ask(`/v1/jobs/${id}`)).json()).toMatchObject({ status: "done" }),
      { timeout: 20_000, interval: 100 },
    );

    const image = await world.ask(`/v1/jobs/${id}/items/0/image`, { redirect: "manual" });
    expect([image.status, image.headers.get("cache-control"), await image.text()]).toEqual([302, "no-store", ""]);
    const link = new URL(image.headers.get("location")!);
    expect([link.origin, link.searchParams.get("X-Amz-Expires")]).toEqual([s3.endpoint, "900"]);
    const picture = await fetch(link);
    expect([picture.status, await picture.text()]).toEqual([200, "PNG of 杯子"]);
    const { file } = (await (await world.ask(`/v1/jobs/${id}/items/0`)).json()) as { file: string };
    expect(picture.headers.get("content-disposition")).toContain(`inline; filename="${file}"`);

    const archive = Buffer.from(await (await world.ask(`/v1/jobs/${id}/archive`)).arrayBuffer());
    for (const prompt of ["杯子", "a bowl"]) expect(archive.includes(`PNG of ${prompt}`), prompt).toBe(true);

    expect((await world.ask(`/v1/jobs/${id}`, { method: "DELETE" })).status).toBe(204);
    await vi.waitFor(async () => expect(await keys()).toEqual([]), { timeout: 20_000, interval: 100 });
    expect((await fetch(link)).status).toBe(404);
  });
});

async function keys(): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of world.objects.list("")) found.push(key);
  return found;
}
