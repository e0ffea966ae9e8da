import { describe, expect, it } from "vitest";
import { itemSpec, itemsOf } from "../testing/job-parts.ts";
import { ItemFeed } from "./item-feed.ts";

describe("ItemFeed", () => {
  it("reads 500 items ahead, and anew for one that is behind or far ahead", async () => {
    const from: number[] = [];
    const source = itemsOf(() => 2_000);
    const feed = new ItemFeed(
      {
        read: (jobId, first) => {
          from.push(first);
          return source.read(jobId, first);
        },
      },
      "job_a",
    );
    expect(feed.peek(0)).toBeUndefined();
    for (let index = 0; index < 1_000; index++) expect(await feed.read(index)).toEqual(itemSpec(index));
    expect(await feed.read(3)).toEqual(itemSpec(3));
    expect([feed.peek(502), feed.peek(503), feed.peek(2)]).toEqual([itemSpec(502), undefined, undefined]);
    expect((await feed.read(1_999)).index).toBe(1_999);
    expect(from).toEqual([0, 500, 3, 1_999]);
  });

  it("rejects where the job has no such item", async () => {
    const feed = new ItemFeed(
      itemsOf(() => 10),
      "job_a",
    );
    await expect(feed.read(10)).rejects.toThrow("job job_a has no item 10");
  });
});
