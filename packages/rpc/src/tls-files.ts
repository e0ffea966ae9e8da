import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { type Clock, ConfigError, invariant } from "@atelier/core";
import { type ChannelCredentials, experimental, type ServerCredentials } from "@grpc/grpc-js";

/** A file and the variable that named it, for messages. */
export interface NamedFile {
  readonly variable: string;
  readonly file: string;
}

export interface TlsFileNames {
  /** Whose certificates are trusted; undefined: the system's authorities. */
  readonly ca?: NamedFile | undefined;
  readonly cert: NamedFile;
  readonly key: NamedFile;
}

/** As node:tls takes it. */
export interface TlsIdentity {
  readonly ca?: Buffer;
  readonly cert: Buffer;
  readonly key: Buffer;
}

export interface TlsWorld {
  readonly clock: Clock;
  /** Told when the files have changed and are in use, or, with why, when they are not fit for use. */
  readonly changed: (problem?: string) => void;
}

/** By looking rather than by being told: what mounts secrets swaps links, of which watchers miss half. */
const LOOK_EVERY_MS = 1_000;

/**
 * A certificate, its key and the authorities that are trusted, from files that somebody renews. New connections use what
 * is in the files now; those that stand go on. Files that do not fit together, as half of a renewal, change nothing.
 */
export class TlsFiles {
  readonly #names: TlsFileNames;
  readonly #world: TlsWorld;
  readonly #listeners = new Set<(identity: TlsIdentity) => void>();
  #identity: TlsIdentity;
  /** What was found unfit, so that it is told of once. */
  #unfit: string | undefined;
  #cancelLook: () => void = () => {};

  /** @throws ConfigError naming a file that cannot be read, or that they do not fit together. */
  constructor(names: TlsFileNames, world: TlsWorld) {
    this.#names = names;
    this.#world = world;
    this.#identity = read(names);
  }

  get identity(): TlsIdentity {
    return this.#identity;
  }

  /** Calls `listener` with each new identity; the result ends that. The files are looked at while somebody listens. */
  onChange(listener: (identity: TlsIdentity) => void): () => void {
    if (this.#listeners.size === 0) this.#lookLater();
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#cancelLook();
    };
  }

  close(): void {
    this.#listeners.clear();
    this.#cancelLook();
  }

  /** For a gRPC server that takes callers with a certificate of an authority in `ca` only; without `ca`, any. */
  serverCredentials(): ServerCredentials {
    const provider = new Provider(this);
    const mutual = this.#names.ca !== undefined;
    // grpc-js names the first for the authorities and the second for the identity, and takes them the other way round.
    return experimental.createCertificateProviderServerCredentials(provider, mutual ? provider : null, mutual);
  }

  /** For a gRPC channel to a server with a certificate of an authority in `ca`, to which it shows its own. */
  channelCredentials(): ChannelCredentials {
    const provider = new Provider(this);
    return experimental.createCertificateProviderChannelCredentials(provider, provider);
  }

  #lookLater(): void {
    this.#cancelLook = this.#world.clock.after(LOOK_EVERY_MS, () => {
      this.#lookLater();
      this.#look();
    });
  }

  #look(): void {
    try {
      const identity = read(this.#names);
      this.#unfit = undefined;
      if (same(identity, this.#identity)) return;
      this.#identity = identity;
      for (const listener of this.#listeners) listener(identity);
      this.#world.changed();
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      if (this.#unfit === error.message) return;
      this.#unfit = error.message;
      this.#world.changed(error.message);
    }
  }
}

type CaListener = experimental.CaCertificateUpdateListener;
type IdentityListener = experimental.IdentityCertificateUpdateListener;

/** The files as grpc-js asks for them; credentials are passed from here to each new connection. */
class Provider implements experimental.CertificateProvider {
  readonly #files: TlsFiles;
  readonly #ends = new Map<CaListener | IdentityListener, () => void>();

  constructor(files: TlsFiles) {
    this.#files = files;
  }

  addCaCertificateListener(listener: CaListener): void {
    this.#follow(listener, ({ ca }) => {
      invariant(ca !== undefined, "gRPC with certificates on both ends names the authorities that it trusts");
      listener({ caCertificate: ca });
    });
  }

  addIdentityCertificateListener(listener: IdentityListener): void {
    this.#follow(listener, ({ cert, key }) => listener({ certificate: cert, privateKey: key }));
  }

  removeCaCertificateListener(listener: CaListener): void {
    this.#ends.get(listener)?.();
  }

  removeIdentityCertificateListener(listener: IdentityListener): void {
    this.#ends.get(listener)?.();
  }

  /** grpc-js is told the first time only after it has returned from adding the listener. */
  #follow(listener: CaListener | IdentityListener, tell: (identity: TlsIdentity) => void): void {
    this.#ends.set(listener, this.#files.onChange(tell));
    process.nextTick(() => tell(this.#files.identity));
  }
}

function read({ ca, cert, key }: TlsFileNames): TlsIdentity {
  const identity = { cert: contentOf(cert), key: contentOf(key), ...(ca && { ca: contentOf(ca) }) };
  try {
    createSecureContext(identity);
  } catch (error) {
    const names = [cert, key, ...(ca ? [ca] : [])].map(({ variable, file }) => `${variable}=${file}`);
    throw new ConfigError(`${names.join(", ")} do not fit together: ${(error as Error).message}`, { cause: error });
  }
  return identity;
}

function contentOf({ variable, file }: NamedFile): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    const why = (error as NodeJS.ErrnoException).code;
    throw new ConfigError(`${variable}=${file} cannot be read: ${why}`, { cause: error });
  }
}

function same(one: TlsIdentity, other: TlsIdentity): boolean {
  return (["ca", "cert", "key"] as const).every(
    (name) => Buffer.compare(one[name] ?? NOTHING, other[name] ?? NOTHING) === 0,
  );
}

const NOTHING = Buffer.alloc(0);
