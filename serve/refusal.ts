// Answers other than what was asked for.
import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { UserError } from "../ffi/errors.ts";
import { visible } from "../ffi/visible.ts";
import { withoutHome } from "./stats.ts";
import { isOutOfFiles } from "./tail.ts";
import type { Failure } from "./types.ts";

/** What OpenAI's API says of a failure beside the sentence. */
type Details = { headers?: Record<string, string>; param?: string; code?: string };

/** Thrown by a handler whose request cannot be served. The message is one sentence for the person who sent it. */
export class Refusal extends Error {
  readonly headers: Record<string, string>;
  readonly param: string | null; // the field of the request that does not fit
  readonly code: string | null; // for programs

  constructor(readonly status: ContentfulStatusCode, message: string, details: Details = {}) {
    super(message);
    this.headers = details.headers ?? {};
    this.param = details.param ?? null;
    this.code = details.code ?? null;
  }

  /** The body of the answer. */
  body(): Failure {
    const type = this.status >= 500
      ? "server_error"
      : this.status === 429
      ? "requests"
      : "invalid_request_error";
    return { error: { message: this.message, type, param: this.param, code: this.code } };
  }
}

/** The answer to a request that failed, before it reached the app. */
export function responseOf(refusal: Refusal): Response {
  return Response.json(refusal.body(), refusal);
}

/** The answer to a request that met an error. */
export function explainFailure(error: Error, c: Context): Response {
  const refusal = asRefusal(error);
  return c.json(refusal.body(), refusal.status, refusal.headers);
}

/** What the sender of a request is told of an error. One that is not meant for them goes to the terminal. */
export function asRefusal(error: unknown): Refusal {
  if (error instanceof Refusal) return error;
  if (isOutOfFiles(error)) {
    return new Refusal(503, "The server can open no more files now", {
      headers: { "Retry-After": "1" },
    });
  }
  if (error instanceof UserError) return new Refusal(500, withoutHome(error.message));
  report(error);
  return new Refusal(500, "The server made a mistake: its terminal says more");
}

/** Prints an error, or a line, to the terminal. A terminal that takes nothing, such as a full disk, ends no server. */
export function report(error: unknown): void {
  try {
    console.error(visible(typeof error === "string" ? error : Deno.inspect(error)));
  } catch {
    // nobody can be told
  }
}
