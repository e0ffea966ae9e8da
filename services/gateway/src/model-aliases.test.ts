import { ConfigError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { readGatewayConfig } from "./config.ts";
import { ModelAliases } from "./model-aliases.ts";
import { workerView } from "./testing/views.ts";

describe("other names of models", () => {
  const aliases = aliasesOf("gpt-image-1, dall-e-3=second");

  it("stand for a model, or for the first where they name none", () => {
    expect(aliases.resolve("dall-e-3", [])).toBe("second");
    expect(aliases.resolve("gpt-image-1", [])).toBeUndefined();
    expect(aliases.resolve("first", [])).toBe("first");
    expect(aliases.resolve(undefined, [])).toBeUndefined();
  });

  it("give way to a model that has the name itself", () => {
    const fleet = [workerView("w1", { models: ["dall-e-3"] })];
    expect(aliases.resolve("dall-e-3", fleet)).toBe("dall-e-3");
    expect(aliases.namesIn([{ id: "dall-e-3" }, { id: "second" }])).toEqual([
      { name: "gpt-image-1", model: "dall-e-3" },
    ]);
  });

  it("are listed with the models that the caller may use, and without those that it may not", () => {
    expect(aliases.namesIn([{ id: "first" }, { id: "second" }])).toEqual([
      { name: "gpt-image-1", model: "first" },
      { name: "dall-e-3", model: "second" },
    ]);
    expect(aliases.namesIn([{ id: "first" }])).toEqual([{ name: "gpt-image-1", model: "first" }]);
    expect(aliases.namesIn([])).toEqual([]);
  });

  it.each([
    ["a=b=c", '"a=b=c" is neither name=model nor a name alone'],
    ["=b", '"=b" is neither'],
    ["a=", '"a=" is neither'],
    ["a b", '"a b" is neither'],
    ["a=x,a=y", '"a=y" names a again'],
    ["a=b,b=c", '"a=b" leads to another alias'],
    ["a=a", '"a=a" leads to another alias'],
  ])("are refused at start as %s", (text, message) => {
    const read = () => aliasesOf(text);
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(message);
  });
});

function aliasesOf(text: string): ModelAliases {
  const env = { ATELIER_WORKERS: "127.0.0.1:1", ATELIER_MODEL_ALIASES: text };
  return new ModelAliases(readGatewayConfig(env).modelAliases);
}
