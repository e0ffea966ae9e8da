import { generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

/** A certificate and its key, as PEM. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
}

/**
 * An authority for one test run, that signs for loopback. Written by hand in DER, since node:crypto makes keys and
 * signatures and no certificates, and a bare machine has no openssl.
 * Source: RFC 5280, section 4.1; ECDSA with SHA-256 on P-256 (RFC 5758, section 3.2).
 */
export class TestAuthority {
  readonly #keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  readonly #name: string;
  /** The authority's own certificate, as PEM. */
  readonly cert: string;

  constructor(name = "Test authority") {
    this.#name = name;
    this.cert = this.#certify(name, this.#keys.publicKey, [BASIC_CONSTRAINTS_CA, KEY_USAGE_CA]);
  }

  /** For a server at 127.0.0.1 and localhost, or for a client of that name. */
  issue(commonName: string): Certificate {
    const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const key = privateKey.export({ type: "pkcs8", format: "pem" }) as string;
    return { cert: this.#certify(commonName, publicKey, [ALTERNATIVE_NAMES, EXTENDED_KEY_USAGE]), key };
  }

  #certify(subject: string, publicKey: KeyObject, extensions: readonly Buffer[]): string {
    const dayMs = 86_400_000;
    const toBeSigned = sequence(
      context(0, integer(Buffer.of(2))), // version 3
      integer(Buffer.concat([Buffer.of(1), randomBytes(15)])),
      ECDSA_SHA256,
      nameOf(this.#name),
      sequence(time(Date.now() - dayMs), time(Date.now() + dayMs)),
      nameOf(subject),
      publicKey.export({ type: "spki", format: "der" }),
      context(3, sequence(...extensions)),
    );
    const signature = sign("sha256", toBeSigned, this.#keys.privateKey);
    const der = sequence(toBeSigned, ECDSA_SHA256, bitString(signature));
    const lines = der.toString("base64").replace(/.{64}/g, "$&\n").trimEnd();
    return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
  }
}

export interface CertificateFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** `certificate` and the authority's, as files in `folder`. */
export function writeCertificate(
  folder: string,
  name: string,
  authority: TestAuthority,
  certificate = authority.issue(name),
): CertificateFiles {
  const files = {
    ca: join(folder, `${name}-ca.pem`),
    cert: join(folder, `${name}-cert.pem`),
    key: join(folder, `${name}-key.pem`),
  };
  writeFileSync(files.ca, authority.cert);
  writeFileSync(files.cert, certificate.cert);
  writeFileSync(files.key, certificate.key, { mode: 0o600 });
  return files;
}

// --- DER -----------------------------------------------------------------------------------------------------------

function tagged(tag: number, ...contents: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(contents);
  const { length } = content;
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.of(tag, ...size), content]);
}

const sequence = (...items: readonly Uint8Array[]) => tagged(0x30, ...items);
const set = (...items: readonly Uint8Array[]) => tagged(0x31, ...items);
const integer = (bytes: Uint8Array) => tagged(0x02, bytes);
const octets = (content: Uint8Array) => tagged(0x04, content);
const bitString = (content: Uint8Array) => tagged(0x03, Buffer.of(0), content);
const context = (number: number, content: Uint8Array) => tagged(0xa0 + number, content);
const boolean = (value: boolean) => tagged(0x01, Buffer.of(value ? 0xff : 0));

function oid(text: string): Buffer {
  const [first, second, ...rest] = text.split(".").map(Number);
  const bytes = rest.flatMap((part) => {
    const groups = [part & 0x7f];
    for (let left = part >> 7; left > 0; left >>= 7) groups.unshift(0x80 | (left & 0x7f));
    return groups;
  });
  return tagged(0x06, Buffer.of(first! * 40 + second!, ...bytes));
}

const time = (ms: number) =>
  tagged(0x18, Buffer.from(`${new Date(ms).toISOString().replace(/[-:T]/g, "").slice(0, 14)}Z`));

const nameOf = (commonName: string) => sequence(set(sequence(oid("2.5.4.3"), tagged(0x0c, Buffer.from(commonName)))));

const extension = (id: string, critical: boolean, content: Uint8Array) =>
  sequence(oid(id), ...(critical ? [boolean(true)] : []), octets(content));

const ECDSA_SHA256 = sequence(oid("1.2.840.10045.4.3.2"));
const BASIC_CONSTRAINTS_CA = extension("2.5.29.19", true, sequence(boolean(true)));
const KEY_USAGE_CA = extension("2.5.29.15", true, tagged(0x03, Buffer.of(1, 0x06))); // certificates, revocation lists
const EXTENDED_KEY_USAGE = extension(
  "2.5.29.37",
  false,
  sequence(oid("1.3.6.1.5.5.7.3.1"), oid("1.3.6.1.5.5.7.3.2")), // servers and clients
);
const ALTERNATIVE_NAMES = extension(
  "2.5.29.17",
  false,
  sequence(tagged(0x82, Buffer.from("localhost")), tagged(0x87, Buffer.of(127, 0, 0, 1))),
);
