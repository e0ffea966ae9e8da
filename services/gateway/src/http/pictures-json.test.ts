import { describe, expect, it } from "vitest";
import { base64Of, picturesJson } from "./pictures-json.ts";

const picture = (...bytes: number[]) => ({
  data: Uint8Array.from(bytes),
  mediaType: "image/png",
  width: 8,
  height: 8,
  seed: 1,
});

describe("picturesJson", () => {
  const pictures = [picture(1, 2, 3, 250), picture(), picture(9, 9)];
  const [first, empty, last] = pictures.map(({ data }) => base64Of(data));

  it.each([
    ["without a picture", { a: 1, text: '国潮 "quoted" \u2028 \n picture 0' }],
    ["with one", { image: first, prompt: "国潮" }],
    ["with one in two places, and others", { image: first, images: [first, last, empty], end: true }],
    ["with nothing else", [last]],
    ["with what JSON leaves out", { a: undefined, b: [undefined], image: last, toJSON: undefined }],
  ])("writes what JSON.stringify does: %s", (_what, answer) => {
    expect(picturesJson(answer, pictures).toString()).toBe(JSON.stringify(answer));
  });

  it("encodes the bytes of a view and not of all that lies around it", () => {
    const data = Uint8Array.of(0, 1, 2, 3, 4).subarray(1, 4);
    expect(base64Of(data)).toBe("AQID");
    expect(base64Of(data)).toBe("AQID");
  });
});
