// Answers other than what was asked for.
import type { Context } from "hono";
import { UserError } from "../base/errors.ts";
import { visible } from "../base/visible.ts";
import { withoutHome } from "./stats.ts";
import { isOutOfFiles } from "./tail.ts";
import type { Failure } from "./types.ts";

/** The HTTP statuses of refusals. */
export type Status = 400 | 401 | 403 | 404 | 405 | 408 | 410 | 413 | 414 | 415 | 429 | 431 | 500 | 501 | 503;

/** What OpenAI's API says of a failure beside the sentence. */
export type Details = { headers?: Record<string, string>; param?: string; code?: string };

/** Thrown by a handler whose request cannot be served. The message is one sentence for the person who sent it. */
export class Refusal extends Error {
  /** Of the answer, beside the usual ones. */
  readonly headers: Record<string, string>;
  /** The field of the request that does not fit. */
  readonly param: string | null;
  /** The kind of failure, for programs. */
  readonly code: string | null;

  /** status: the HTTP status of the answer. */
  constructor(readonly status: Status, message: string, details: Details = {}) {
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

/**
 * The answer to a request that met an error.
 *
 * @internal since `deno doc --lint` takes Context, a type of the package hono, for a private one
 */
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
