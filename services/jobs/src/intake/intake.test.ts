import { Readable } from "node:stream";
import { ServingError } from "@atelier/core";
import { afterEach, describe, expect, it } from "vitest";
import { CALLER, collected, type IntakeWorld, type IntakeWorldOptions, intakeWorld } from "../testing/intake-world.ts";

const worlds: IntakeWorld[] = [];
afterEach(async () => {
  for (const world of worlds.splice(0)) await world.close();
});

async function opened(options?: IntakeWorldOptions): Promise<IntakeWorld> {
  const world = await intakeWorld(options);
  worlds.push(world);
  return world;
}

const TEMPLATE = { prompt: "{product}, {colour}, 白色背景" };
const SHEET = "sku,product,colour\nA-1,T恤,红色\nA-2,运动鞋,白色\n";

describe("A sheet with a template", () => {
  it("becomes a job of an item for each row, preset and variant, in this order", async () => {
    const world = await opened();
    const presets = [
      { name: "studio", prompt_suffix: ", 摄影棚", negative_prompt: "blurry", defaults: { steps: 30 } },
      { name: "street", prompt_prefix: "街拍, ", defaults: { format: "jpeg", quality: 80 } },
    ];
    const template = { ...TEMPLATE, negative_prompt: "text", presets, variants: 2, seed: 7, defaults: { width: 768 } };
    const { record, items } = await world.accepted({ body: SHEET, options: { name: "launch", template } });
    expect(
      items.map(({ file, prompt, negativePrompt, row, variant }) => ({ file, prompt, negativePrompt, row, variant })),
    ).toMatchInlineSnapshot(`
        [
          {
            "file": "A-1-studio-v1.png",
            "negativePrompt": "text, blurry",
            "prompt": "T恤, 红色, 白色背景, 摄影棚",
            "row": 1,
            "variant": 1,
          },
          {
            "file": "A-1-studio-v2.png",
            "negativePrompt": "text, blurry",
            "prompt": "T恤, 红色, 白色背景, 摄影棚",
            "row": 1,
            "variant": 2,
          },
          {
            "file": "A-1-street-v1.jpg",
            "negativePrompt": "text",
            "prompt": "街拍, T恤, 红色, 白色背景",
            "row": 1,
            "variant": 1,
          },
          {
            "file": "A-1-street-v2.jpg",
            "negativePrompt": "text",
            "prompt": "街拍, T恤, 红色, 白色背景",
            "row": 1,
            "variant": 2,
          },
          {
            "file": "A-2-studio-v1.png",
            "negativePrompt": "text, blurry",
            "prompt": "运动鞋, 白色, 白色背景, 摄影棚",
            "row": 2,
            "variant": 1,
          },
          {
            "file": "A-2-studio-v2.png",
            "negativePrompt": "text, blurry",
            "prompt": "运动鞋, 白色, 白色背景, 摄影棚",
            "row": 2,
            "variant": 2,
          },
          {
            "file": "A-2-street-v1.jpg",
            "negativePrompt": "text",
            "prompt": "街拍, 运动鞋, 白色, 白色背景",
            "row": 2,
            "variant": 1,
          },
          {
            "file": "A-2-street-v2.jpg",
            "negativePrompt": "text",
            "prompt": "街拍, 运动鞋, 白色, 白色背景",
            "row": 2,
            "variant": 2,
          },
        ]
      `);
    expect(items.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(record).toMatchObject({
      tenant: "shop",
      keyId: "key1",
      weight: 2,
      name: "launch",
      itemCount: 8,
      priority: "bulk",
      // 4 pictures of 30 steps and 4 of 20, at 50 ms a step; an hour costs 3.60.
      predictedDeviceMs: 4 * 30 * 50 + 4 * 20 * 50,
      predictedCost: 0.01,
      source: { kind: "csv", rows: 2, skipped: [], skippedCount: 0, seed: 7, clonedFrom: null },
    });
    expect(record.shapes.map(({ width, steps, format, quality }) => ({ width, steps, format, quality }))).toEqual([
      { width: 768, steps: 30, format: "png", quality: null },
      { width: 768, steps: 20, format: "jpeg", quality: 80 },
    ]);
  });

  it("lets a row say more of its pictures than preset and template do, and an empty cell nothing", async () => {
    const world = await opened();
    const template = {
      prompt: "{product}",
      defaults: { steps: 10, width: 512 },
      presets: [{ name: "p", defaults: { steps: 15 } }],
    };
    const { items, record } = await world.accepted({
      body: "product,prompt,negative_prompt,steps,width,guidance_scale,format\nhat,,,,,,\nbag,my own words,ugly,25.0,768,3.5,webp\n",
      options: { template },
    });
    expect(
      items.map(({ prompt, negativePrompt, shape }) => [prompt, negativePrompt, record.shapes[shape]]),
    ).toMatchObject([
      ["hat", "", { steps: 15, width: 512, guidanceScale: 7, format: "png" }],
      ["my own words", "ugly", { steps: 25, width: 768, guidanceScale: 3.5, format: "webp" }],
    ]);
  });

  it("asks the gateway once for each combination that rows have", async () => {
    const world = await opened();
    const rows = Array.from({ length: 1_500 }, (_, i) => `p${i},${[512, 640][i % 2]}`);
    await world.accepted({ body: `prompt,width\n${rows.join("\n")}`, options: {} });
    expect(world.drafts).toEqual([{ width: 512 }, { width: 640 }]);
  });

  it("gives the same seeds for the same base seed, and others for another", async () => {
    const world = await opened();
    const seeds = async (seed?: number) =>
      (await world.accepted({ body: SHEET, options: { template: { ...TEMPLATE, seed, variants: 3 } } })).items.map(
        (item) => item.seed,
      );
    const first = await seeds(5);
    expect(new Set(first).size).toBe(6);
    expect(await seeds(5)).toEqual(first);
    expect(await seeds(6)).not.toEqual(first);
    expect(await seeds()).not.toEqual(first);
  });

  it("takes a row's seed as it is, and adds to it for variants", async () => {
    const world = await opened();
    const { items } = await world.accepted({
      body: "prompt,seed\na,40\nb,\n",
      options: { template: { variants: 2, seed: 1 } },
    });
    expect(items.map(({ seed }) => seed).slice(0, 2)).toEqual([40, 41]);
    expect(items[2]!.seed).not.toBe(items[3]!.seed - 1);
  });

  it("records the seed that it drew, so that the job can be expanded again", async () => {
    const world = await opened();
    const first = await world.accepted({ body: SHEET, options: { template: TEMPLATE } });
    const { seed } = first.record.source;
    const again = await world.accepted({ body: SHEET, options: { template: { ...TEMPLATE, seed } } });
    expect(again.items).toEqual(first.items);
  });

  it("names files by a pattern, and no two the same", async () => {
    const world = await opened();
    const { items } = await world.accepted({
      body: "sku,product,colour\nA,鞋,红/蓝\nA,鞋,红/蓝\na,..,x\n,CON,y\n",
      options: { template: { prompt: "{product}", file_name: "{sku} {product} {colour}" } },
    });
    expect(items.map(({ file }) => file)).toEqual(["A 鞋 红_蓝.png", "A 鞋 红_蓝-2.png", "a .. x.png", "CON y.png"]);
  });

  it("notes cells that are empty in the preview, but takes them", async () => {
    const world = await opened();
    const preview = await world.preview({ body: "product,colour\nhat,\nbag,red\n", options: { template: TEMPLATE } });
    expect(preview.notes).toEqual(["1 row has an empty colour, which the template uses"]);
    expect(preview.first[0]!.prompt).toBe("hat, , 白色背景");
  });
});

describe("A preview", () => {
  it("shows the first twenty items, counts all, predicts time and price, and stores nothing", async () => {
    const world = await opened({ terms: { imagesLeft: 10_000 } });
    const rows = Array.from({ length: 5_000 }, (_, i) => `S${i},shoe ${i},red`);
    const options = { template: { ...TEMPLATE, variants: 2, seed: 3 } };
    const body = `sku,product,colour\n${rows.join("\n")}`;
    const preview = await world.preview({ body, options });
    expect(preview).toMatchObject({
      rows: 5_000,
      items: 10_000,
      predictedDeviceMs: 10_000 * 20 * 50,
      predictedCost: 10,
      currency: "EUR",
      imagesLeft: 10_000,
      fits: true,
      skippedCount: 0,
    });
    expect(preview.first).toHaveLength(20);
    expect(await world.stored()).toEqual([]);
    const { items } = await world.accepted({ body, options });
    expect(preview.first.map(({ shapeOf: _, ...item }) => item)).toEqual(items.slice(0, 20));
  });

  it("says that a job would not fit into what is left of the month", async () => {
    const world = await opened({ terms: { deviceMsLeft: 1_500 } });
    expect(await world.preview({ body: SHEET, options: { template: TEMPLATE } })).toMatchObject({ fits: false });
  });
});

describe("A body of JSON", () => {
  it("holds its options and its rows", async () => {
    const world = await opened();
    const { record, items } = await world.accepted({
      contentType: "application/json",
      body: JSON.stringify({
        name: "json",
        priority: "standard",
        template: TEMPLATE,
        rows: [{ product: "hat", colour: 7, karras_sigmas: true }],
      }),
    });
    expect(record).toMatchObject({ name: "json", priority: "standard", source: { kind: "json", rows: 1 } });
    expect(record.shapes[0]).toMatchObject({ karrasSigmas: true });
    expect(items[0]!.prompt).toBe("hat, 7, 白色背景");
  });

  it("needs no rows where the template needs none", async () => {
    const world = await opened();
    const body = JSON.stringify({ template: { prompt: "a lighthouse {{at}} night", variants: 3 } });
    const { items } = await world.accepted({ contentType: "application/json", body });
    expect(items.map(({ prompt, file }) => [prompt, file])).toEqual([
      ["a lighthouse {at} night", "item-000001-v1.png"],
      ["a lighthouse {at} night", "item-000001-v2.png"],
      ["a lighthouse {at} night", "item-000001-v3.png"],
    ]);
  });

  it.each([
    ['{"rows": [{"prompt": "a"}], "items": []}', /items and rows are one thing/],
    ['{"rows": {"prompt": "a"}}', /rows must be a list/],
    ['{"template": {"prompt": "{a}"}}', /there are no rows/],
    ['{"rows": []}', /the sheet has no rows/],
    ['{"rows": [{"prompt": "a"}, "b"]}', /row 2: the row is "b"; it must be an object/],
    ['{"rows": [{"prompt": {"text": "a"}}]}', /row 1: prompt is .* must be a text, a number/],
    ['{"rows": [{"prompt": "a"}', /the body is no JSON/],
    ["", /the body is empty/],
    ['{"prompt": "a"}', /unknown field "prompt"/],
    [
      '{"template": {"prompt": "a", "defaults": {"loras": []}}}',
      /template.defaults.loras cannot be set: jobs take no adapters yet/,
    ],
    ['{"template": {"prompt": "a", "variants": 1000000}}', /variants is 1000000/],
    [
      '{"template": {"prompt": "a"}, "webhook": {"url": "https://shop.example", "events": ["job.exploded"]}}',
      /webhook.events/,
    ],
  ])("is refused as %s", async (body, message) => {
    const world = await opened();
    const submitted = world.submit({ contentType: "application/json", body });
    await expect(submitted).rejects.toMatchObject({ code: "INVALID_REQUEST", message: expect.stringMatching(message) });
    expect(await world.stored()).toEqual([]);
  });

  it("is told to come as JSONL where it is longer than 32 MiB", async () => {
    const world = await opened();
    const body = Readable.from(repeated(Buffer.alloc(1024 * 1024, " "), 40));
    const submitted = world.submit({ contentType: "application/json", body });
    await expect(submitted).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE", message: /JSONL/ });
  });
});

describe("A bad row", () => {
  const lines = Array.from({ length: 100_000 }, (_, i) => `SKU-${i},shoe,${i + 2 === 70_001 ? "wide" : "512"}`);
  const body = `sku,prompt,width\n${lines.join("\n")}\n`;

  it("refuses the whole sheet of 100,000 with its line, column and value, and leaves nothing", async () => {
    const world = await opened();
    const submitted = world.submit({ body });
    await expect(submitted).rejects.toMatchObject({
      code: "INVALID_REQUEST",
      field: "width",
      message: /line 70001: width is "wide"; it must be a whole number/,
    });
    expect(await world.stored()).toEqual([]);
  });

  it("is left out and reported with on_error skip", async () => {
    const world = await opened();
    const { record, items } = await world.accepted({ body, options: { on_error: "skip" } });
    expect(record.itemCount).toBe(99_999);
    expect(record.source).toMatchObject({
      rows: 100_000,
      skippedCount: 1,
      skipped: [{ line: 70_001, message: expect.stringContaining('width is "wide"') }],
    });
    expect(items.at(-1)).toMatchObject({ index: 99_998, row: 100_000, sku: "SKU-99999" });
  });

  it("is counted beyond the first hundred that are told of", async () => {
    const world = await opened();
    const rows = Array.from({ length: 300 }, (_, i) => (i % 2 === 0 ? `p${i},512` : `p${i},-1`));
    const { record } = await world.accepted({
      body: `prompt,width\n${rows.join("\n")}`,
      options: { on_error: "skip" },
    });
    expect(record.itemCount).toBe(150);
    expect(record.source.skippedCount).toBe(150);
    expect(record.source.skipped).toHaveLength(100);
  });

  it("says how many more are bad among those read so far", async () => {
    const world = await opened();
    const submitted = world.submit({ body: "prompt,width\na,x\nb,512\nc,y\nd,z\n" });
    await expect(submitted).rejects.toThrow(
      'line 2: width is "x"; it must be a whole number from 0 to 9007199254740991; 2 more of the 4 rows read so far are bad',
    );
  });

  it("is one that the model refuses, with the gateway's words", async () => {
    const world = await opened();
    const submitted = world.submit({ body: "prompt,steps\na,20\nb,500\n" });
    await expect(submitted).rejects.toMatchObject({
      field: "steps",
      message: /line 3: steps is 500; it must be at most 100/,
    });
  });

  it("is not every row where the settings themselves are wrong: they are named, also with skip", async () => {
    const world = await opened();
    const options = { on_error: "skip", template: { defaults: { model: "gone" } } };
    await expect(world.submit({ body: "prompt\na\nb\n", options })).rejects.toMatchObject({
      code: "MODEL_NOT_FOUND",
      message: "[MODEL_NOT_FOUND] no model gone",
    });
  });

  it("refuses the sheet where none is good", async () => {
    const world = await opened();
    const submitted = world.submit({ body: "prompt,width\na,x\nb,y\n", options: { on_error: "skip" } });
    await expect(submitted).rejects.toMatchObject({
      code: "INVALID_REQUEST",
      message: /none of the 2 rows is good.*line 2/,
    });
    expect(await world.stored()).toEqual([]);
  });

  it.each([
    ["an empty prompt", "prompt,sku\n,A\n", /line 2: prompt is empty/],
    ["a prompt of 10,001 bytes", `prompt\n${"x".repeat(10_001)}\n`, /line 2: prompt has 10001 characters/],
    ["a control character", "prompt\na\u0007b\n", /line 2: prompt holds the control character U\+0007/],
    ["a NUL in any cell", "prompt,sku\na,b\u0000c\n", /line 2: sku holds the control character U\+0000/],
    ["a cell of 1 MB", `prompt,x\na,1\nb,"${"y".repeat(1_000_000)}"\n`, /line 3: .*262144 characters/],
    ["too few cells", "prompt,sku,x\na,b,c\na,b\n", /line 3: the row has 2 cells and the header 3/],
    ["too many cells", "prompt,sku\na,b,c\n", /line 2: cell 3 is "c", and the header has 2 columns/],
    ["a seed above 2^53", "prompt,seed\na,9007199254740992\n", /line 2: seed is "9007199254740992"/],
    [
      "a quote that is never closed",
      'prompt,sku\n"a,b\nc,d\n',
      /line 2: cell 1 begins with a quote that is never closed/,
    ],
    ["text after a closing quote", 'prompt,sku\n"a"b,c\n', /line 2: cell 1 goes on after its closing quote with "b,c/],
  ])("is one with %s", async (_what, text, message) => {
    const world = await opened();
    await expect(world.submit({ body: text })).rejects.toThrow(message);
    expect(await world.stored()).toEqual([]);
  });
});

describe("A sheet", () => {
  it.each([
    ["that is empty", "", {}, /the sheet is empty/],
    ["of a header alone", "prompt,sku\n", {}, /the sheet has no rows/],
    ["with two columns of one name", "prompt,sku,SKU\na,b,c\n", {}, /two columns "sku"/],
    ["with adapters", "prompt,loras\na,b\n", {}, /column "loras": jobs take no adapters yet/],
    ["with num_images", "prompt,num_images\na,2\n", {}, /template.variants makes several/],
    [
      "without prompts",
      "sku,product\na,b\n",
      {},
      /neither template.prompt nor a column "prompt"; the columns are "sku", "product"/,
    ],
    [
      "with an unknown placeholder",
      SHEET,
      { template: { prompt: "{product} {color}" } },
      /\{color\}, and the columns are "sku", "product", "colour"/,
    ],
    [
      "with a brace left open",
      SHEET,
      { template: { prompt: "a {product" } },
      /template.prompt has "\{product" at character 3/,
    ],
    [
      "with an unknown preset",
      SHEET,
      { template: { ...TEMPLATE, presets: ["studio"] } },
      /presets\[0\] is "studio"; there are no presets/,
    ],
    ["with unknown options", SHEET, { template: TEMPLATE, colour: "red" }, /unknown field "colour"/],
    [
      "of 201 columns",
      `prompt,${Array.from({ length: 200 }, (_, i) => `c${i}`).join(",")}\n`,
      {},
      /201 columns and may have 200/,
    ],
    [
      "that is a workbook",
      "PK\u0003\u0004and so on",
      {},
      /a workbook \(\.xlsx\) or another ZIP file; save it as CSV UTF-8/,
    ],
    ["of an unknown charset", SHEET, { charset: "latin9" }, /charset is "latin9"/],
  ])("%s is refused", async (_what, body, options, message) => {
    const world = await opened();
    await expect(world.submit({ body, options })).rejects.toMatchObject({
      code: "INVALID_REQUEST",
      message: expect.stringMatching(message),
    });
    expect(await world.stored()).toEqual([]);
  });

  it.each([
    [
      "application/octet-stream",
      /name its format \(csv, jsonl, json\)\. A workbook \(\.xlsx\) is saved as CSV UTF-8 first/,
    ],
    [
      "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
      /is a workbook \(\.xlsx\); save it as CSV UTF-8/,
    ],
  ])("of type %s is refused, unless its format is named", async (contentType, message) => {
    const world = await opened();
    await expect(world.submit({ body: "prompt\na\n", contentType })).rejects.toThrow(message);
    const { record } = await world.accepted({ body: "prompt\na\n", contentType, options: { format: "csv" } });
    expect(record.itemCount).toBe(1);
  });

  it("of more than 500 different shapes is refused", async () => {
    const world = await opened();
    const rows = Array.from({ length: 501 }, (_, i) => `p,${i / 1_000}`);
    const submitted = world.submit({ body: `prompt,guidance_scale\n${rows.join("\n")}` });
    await expect(submitted).rejects.toThrow(/more than 500 different combinations/);
  });

  it("of more pictures than a job may have is refused, naming the setting", async () => {
    const world = await opened({ itemsMax: 1_000 });
    const submitted = world.submit({ body: "prompt\na\nb\n", options: { template: { variants: 1_000 } } });
    await expect(submitted).rejects.toMatchObject({
      code: "PAYLOAD_TOO_LARGE",
      message: /more than 1000 pictures.*ATELIER_JOB_ITEMS_MAX/,
    });
    expect(await world.stored()).toEqual([]);
  });

  it("keeps cells that spreadsheets would run as they are: they are text", async () => {
    const world = await opened();
    const { items } = await world.accepted({ body: 'prompt,sku\n"=HYPERLINK(""http://x"")",@A\n' });
    expect(items[0]).toMatchObject({ prompt: '=HYPERLINK("http://x")', sku: "@A", file: "@A.png" });
  });

  it("that says a length above the limit is refused before a byte of it is read", async () => {
    const world = await opened({ uploadBytesMax: 1_000 });
    const body = Readable.from(repeated(Buffer.from("x"), 10));
    const submitted = world.submit({ body, contentLength: 1_001 });
    await expect(submitted).rejects.toMatchObject({
      code: "PAYLOAD_TOO_LARGE",
      message: /has 1001 bytes and may have 1000 bytes \(ATELIER_JOB_UPLOAD_MAX\)/,
    });
    expect(body.readableFlowing).toBeNull();
  });

  it("of 1 GB is read up to the limit and no further", async () => {
    const world = await opened({ uploadBytesMax: 4 * 1024 * 1024 });
    let sent = 0;
    const line = Buffer.from(`${"red shoes ".repeat(6_000)}\n`.repeat(1));
    async function* gigabyte(): AsyncIterable<Buffer> {
      yield Buffer.from("product\n");
      for (; sent < 2 ** 30; sent += line.length) yield line;
    }
    const submitted = world.submit({
      body: Readable.from(gigabyte()),
      options: { on_error: "skip", template: { prompt: "a {product}" } },
    });
    await expect(submitted).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE" });
    expect(sent).toBeLessThan(6 * 1024 * 1024);
    expect(await world.stored()).toEqual([]);
  });

  it("of 200,000 rows takes little memory", async () => {
    const world = await opened();
    let most = 0;
    function* rows(): Iterable<Buffer> {
      yield Buffer.from("sku,product,colour\n");
      for (let from = 0; from < 200_000; from += 500) {
        const block = Array.from({ length: 500 }, (_, i) => `SKU-${from + i},${"shoe ".repeat(20)},red`);
        yield Buffer.from(`${block.join("\n")}\n`);
        if (from % 10_000 !== 0) continue;
        globalThis.gc?.();
        most = Math.max(most, process.memoryUsage().heapUsed);
      }
    }
    const before = process.memoryUsage().heapUsed;
    const { type } = await world.submit({ body: Readable.from(rows()), options: { template: TEMPLATE } });
    expect(type).toBe("accepted");
    // Its items alone are 80 MB as objects; the sheet is 24 MB.
    expect(most - before).toBeLessThan(64 * 1024 * 1024);
  });
});

describe("A month's quota", () => {
  it.each([
    ["images", { imagesLeft: 1 }, /takes 2 pictures, and 1 are left/],
    ["device time", { deviceMsLeft: 1_999 }, /predicted to take 2 device seconds, and 2 are left/],
  ])(
    "of %s that a job does not fit into refuses it, saying both, and leaves nothing",
    async (_what, terms, message) => {
      const world = await opened({ terms });
      const submitted = world.submit({ body: SHEET, options: { template: TEMPLATE } });
      await expect(submitted).rejects.toMatchObject({
        code: "QUOTA_EXCEEDED",
        message: expect.stringMatching(message),
      });
      expect(await world.stored()).toEqual([]);
    },
  );

  it("takes a job that just fits", async () => {
    const world = await opened({ terms: { imagesLeft: 2, deviceMsLeft: 2_000 } });
    expect((await world.accepted({ body: SHEET, options: { template: TEMPLATE } })).record.itemCount).toBe(2);
  });
});

describe("An Idempotency-Key", () => {
  const sheet = { body: SHEET, options: { template: TEMPLATE }, idempotencyKey: "launch-1" };

  it("gives the job that it made, however often the same is sent", async () => {
    const world = await opened();
    const { record } = await world.accepted(sheet);
    expect(await world.submit(sheet)).toEqual({ type: "replayed", jobId: record.id });
    expect((await world.stored()).filter((key) => key.startsWith("jobs."))).toHaveLength(1);
  });

  it("belongs to one sheet and one set of options", async () => {
    const world = await opened();
    await world.accepted(sheet);
    expect(await world.submit({ ...sheet, body: `${SHEET}A-3,hat,red\n` })).toEqual({ type: "key_of_another" });
    const options = { template: { ...TEMPLATE, variants: 2 } };
    expect(await world.submit({ ...sheet, options })).toEqual({ type: "key_of_another" });
  });

  it("is each tenant's own", async () => {
    const world = await opened();
    const first = await world.accepted(sheet);
    const other = await world.accepted({ ...sheet, caller: { ...CALLER, tenant: "b.c" } });
    expect(other.record.id).not.toBe(first.record.id);
  });

  it("is in progress while the first is read", async () => {
    const world = await opened();
    const gate = Promise.withResolvers<void>();
    async function* slow(): AsyncIterable<Buffer> {
      yield Buffer.from(SHEET);
      await gate.promise;
    }
    const first = world.submit({ ...sheet, body: Readable.from(slow()) });
    await expect.poll(() => world.submit(sheet)).toEqual({ type: "in_progress" });
    gate.resolve();
    expect((await first).type).toBe("accepted");
    expect((await world.submit(sheet)).type).toBe("replayed");
  });

  it("is free again after a submission that failed, after its job was deleted, and a day later", async () => {
    const world = await opened();
    world.faults.gateway = new ServingError("NO_WORKER", "no worker is ready");
    await expect(world.submit(sheet)).rejects.toMatchObject({ code: "NO_WORKER" });
    delete world.faults.gateway;
    const { record } = await world.accepted(sheet);
    await world.queue.records.remove(`jobs.${record.id}`);
    const second = await world.accepted(sheet);
    world.clock.advance(24 * 60 * 60 * 1_000);
    expect((await world.accepted(sheet)).record.id).not.toBe(second.record.id);
  });

  it("outlives a restart", async () => {
    const world = await opened();
    const { record } = await world.accepted(sheet);
    const again = await world.newIntake().submit({
      ...sheet,
      caller: CALLER,
      contentType: "text/csv",
      body: Readable.from([Buffer.from(SHEET)]),
      dryRun: false,
      signal: new AbortController().signal,
    });
    expect(again).toEqual({ type: "replayed", jobId: record.id });
  });
});

describe("A submission that comes to nothing", () => {
  it("leaves nothing where its caller goes away", async () => {
    const world = await opened();
    const gone = new AbortController();
    async function* rows(): AsyncIterable<Buffer> {
      yield Buffer.from("prompt\n");
      for (let i = 0; ; i++) {
        yield Buffer.from("shoe\n".repeat(1_000));
        if (i === 5) gone.abort(new ServingError("CANCELLED", "the caller went away"));
      }
    }
    const submitted = world.submit({ body: Readable.from(rows()), signal: gone.signal });
    await expect(submitted).rejects.toMatchObject({ code: "CANCELLED" });
    expect(await world.stored()).toEqual([]);
  });

  it("leaves nothing where its upload breaks off", async () => {
    const world = await opened();
    async function* rows(): AsyncIterable<Buffer> {
      yield Buffer.from(`prompt\n${"shoe\n".repeat(5_000)}`);
      throw Object.assign(new Error("aborted"), { code: "ECONNRESET" });
    }
    await expect(world.submit({ body: Readable.from(rows()) })).rejects.toMatchObject({ code: "CANCELLED" });
    expect(await world.stored()).toEqual([]);
  });

  it("leaves nothing where nobody heard that the job was accepted", async () => {
    const world = await opened();
    world.faults.accept = new ServingError("STORAGE_UNAVAILABLE", "the queue is away");
    const submitted = world.submit({ body: "prompt\na\n", idempotencyKey: "k" });
    await expect(submitted).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    expect((await world.stored()).filter((key) => !key.startsWith("idem."))).toEqual([]);
  });

  it("leaves nothing once the queue is back, where it went away before that could be removed; until then its key is in progress", async () => {
    const world = await opened();
    const away = new ServingError("STORAGE_UNAVAILABLE", "the queue is away");
    const sheet = { body: "prompt\na\n", idempotencyKey: "k" };
    Object.assign(world.faults, { accept: away, remove: away });
    await expect(world.submit(sheet)).rejects.toMatchObject({ code: "STORAGE_UNAVAILABLE" });
    delete world.faults.accept;
    expect(await world.submit(sheet)).toEqual({ type: "in_progress" });
    world.clock.advance(1_000);
    expect(await world.submit(sheet)).toEqual({ type: "in_progress" });

    delete world.faults.remove;
    await expect
      .poll(async () => {
        world.clock.advance(1_000);
        return (await world.stored()).filter((key) => !key.startsWith("idem."));
      })
      .toEqual([]);
    await expect.poll(async () => (await world.submit(sheet)).type).toBe("accepted");
  });

  it("leaves chunks where its process is killed, which are removed an hour later, and never those of a job", async () => {
    const world = await opened();
    const { record } = await world.accepted({ body: "prompt\na\n" });
    await world.objects.put("jobs/job_killed/items/000000.jsonl", Buffer.from("{}\n"));
    const atMs = world.clock.nowMs();
    await world.queue.records.put("intake.job_killed", JSON.stringify({ atMs }));
    await world.queue.records.put(`intake.${record.id}`, JSON.stringify({ atMs }));
    await world.intake.start();
    expect(await world.stored()).toContain("jobs/job_killed/items/000000.jsonl");
    world.clock.advance(60 * 60 * 1_000);
    await expect.poll(() => world.stored()).toEqual([`jobs/${record.id}/items/000000.jsonl`, `jobs.${record.id}`]);
  });
});

describe("A clone", () => {
  it("has the same items, with what was changed", async () => {
    const world = await opened();
    const { record, items } = await world.accepted({ body: SHEET, options: { name: "first", template: TEMPLATE } });
    const settings = { priority: "standard", defaults: { steps: 40, format: "webp", quality: 70 } };
    const signal = new AbortController().signal;
    const clone = await world.intake.clone({ caller: CALLER, record, settings, signal });
    expect(clone).toMatchObject({
      name: "first (copy)",
      priority: "standard",
      itemCount: 2,
      predictedDeviceMs: 2 * 40 * 50,
      shapes: [{ steps: 40, format: "webp", quality: 70, width: 512 }],
      source: { clonedFrom: record.id, seed: record.source.seed },
    });
    const copies = await collected(world.items.read(clone.id, 0));
    expect(copies).toEqual(items.map((item) => ({ ...item, file: item.file.replace(".png", ".webp") })));
  });

  it("has other seeds where that is asked", async () => {
    const world = await opened();
    const { record, items } = await world.accepted({ body: SHEET, options: { template: TEMPLATE } });
    const signal = new AbortController().signal;
    const clone = await world.intake.clone({ caller: CALLER, record, settings: { new_seeds: true }, signal });
    const copies = await collected(world.items.read(clone.id, 0));
    expect(copies.map(({ prompt }) => prompt)).toEqual(items.map(({ prompt }) => prompt));
    for (const [i, copy] of copies.entries()) expect(copy.seed).not.toBe(items[i]!.seed);
  });

  it("is refused where its model makes no such pictures, or its items are gone", async () => {
    const world = await opened();
    const { record } = await world.accepted({ body: SHEET, options: { template: TEMPLATE } });
    const signal = new AbortController().signal;
    const wide = world.intake.clone({ caller: CALLER, record, settings: { defaults: { width: 2_048 } }, signal });
    await expect(wide).rejects.toMatchObject({ code: "INVALID_REQUEST", field: "defaults.width" });
    await world.objects.removeAll(`jobs/${record.id}/`);
    await expect(world.intake.clone({ caller: CALLER, record, settings: {}, signal })).rejects.toMatchObject({
      code: "CONFLICT",
    });
    expect(await world.stored()).toEqual([`jobs.${record.id}`]);
  });
});

describe("Presets", () => {
  it("are kept for each tenant by name, and used by name", async () => {
    const world = await opened();
    const { presets } = world.intake;
    await presets.put("shop", "studio", { prompt_suffix: ", 摄影棚" });
    await presets.put("shop", "beach", { defaults: { steps: 30 } });
    await presets.put("shop.eu", "studio", {});
    expect(await presets.list("shop")).toEqual([
      { name: "beach", defaults: { steps: 30 } },
      { name: "studio", prompt_suffix: ", 摄影棚" },
    ]);
    const { items } = await world.accepted({
      body: "prompt\nhat\n",
      options: { template: { presets: ["studio", "beach"] } },
    });
    expect(items.map(({ prompt, preset }) => [prompt, preset])).toEqual([
      ["hat, 摄影棚", "studio"],
      ["hat", "beach"],
    ]);
    await presets.remove("shop", "beach");
    await expect(presets.get("shop", "beach")).rejects.toMatchObject({ code: "NOT_FOUND" });
    await expect(presets.remove("shop", "beach")).rejects.toMatchObject({ code: "NOT_FOUND" });
    expect(await presets.list("shop.eu")).toEqual([{ name: "studio" }]);
  });

  it.each([
    ["a/b", {}, /a preset's name/],
    ["ok", { prompt: "x" }, /unknown field "prompt"/],
    ["ok", { defaults: { steps: "many" } }, /defaults.steps is "many"/],
  ])("named %j saying %j are refused", async (name, body, message) => {
    const world = await opened();
    await expect(world.intake.presets.put("shop", name, body)).rejects.toThrow(message);
  });
});

describe("Whoever may only ask for bulk work", () => {
  it("gets no job of class standard", async () => {
    const world = await opened();
    const caller = { ...CALLER, priority: "bulk" } as const;
    const submitted = world.submit({ body: "prompt\na\n", options: { priority: "standard" }, caller });
    await expect(submitted).rejects.toMatchObject({ code: "FORBIDDEN", field: "priority" });
    expect((await world.accepted({ body: "prompt\na\n", caller })).record.priority).toBe("bulk");
  });
});

function* repeated(part: Buffer, times: number): Iterable<Buffer> {
  for (let i = 0; i < times; i++) yield part;
}
