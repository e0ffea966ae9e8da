import { hashApiKey, newApiKey } from "@atelier/core";

/** A key as a test's configuration has it, and what its holder sends. */
export interface TestKey {
  readonly id: string;
  readonly text: string;
  readonly record: Readonly<Record<string, unknown>>;
}

export function testKey(fields: Readonly<Record<string, unknown>> = {}): TestKey {
  const key = newApiKey();
  return { ...key, record: { id: key.id, hash: hashApiKey(key), name: "a test's", ...fields } };
}

/** ATELIER_KEYS, or the text of a keys file. */
export function keysJson(keys: readonly TestKey[], tenants: readonly Readonly<Record<string, unknown>>[] = []): string {
  return JSON.stringify({ keys: keys.map(({ record }) => record), tenants });
}

export const bearer = ({ text }: Pick<TestKey, "text">): Record<string, string> => ({
  authorization: `Bearer ${text}`,
});
