import { ServingError } from "@atelier/core";

export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/**
 * The key that a request carries: `Authorization: Bearer KEY`, `x-api-key: KEY`, or `Authorization: Basic` of
 * `anything:KEY`, since A1111's clients know no other way. Undefined where there is none.
 *
 * @throws ServingError UNAUTHENTICATED where it is not readable or two differ.
 */
export function readCredential(headers: Headers): string | undefined {
  const found = [
    fromAuthorization(single(headers["authorization"], "authorization")),
    single(headers["x-api-key"], "x-api-key"),
  ];
  const keys = new Set(found.filter((key) => key !== undefined));
  if (keys.size > 1) {
    throw new ServingError("UNAUTHENTICATED", "the headers authorization and x-api-key hold different keys; send one");
  }
  return [...keys][0];
}

function fromAuthorization(header: string | undefined): string | undefined {
  if (header === undefined) return undefined;
  const [, scheme, value] = /^(\S+)\s+(\S+)$/.exec(header.trim()) ?? [];
  if (scheme?.toLowerCase() === "bearer") return value;
  if (scheme?.toLowerCase() === "basic") {
    const text = Buffer.from(value!, "base64").toString("utf8");
    if (text.includes(":")) return text.slice(text.indexOf(":") + 1);
  }
  throw new ServingError(
    "UNAUTHENTICATED",
    "the authorization header is not readable; it must be Bearer and a key, or Basic with the key as the password",
  );
}

function single(value: string | string[] | undefined, name: string): string | undefined {
  if (!Array.isArray(value)) return value === "" ? undefined : value;
  if (value.length <= 1) return single(value[0], name);
  throw new ServingError("UNAUTHENTICATED", `there are ${value.length} headers ${name}; send one`);
}
