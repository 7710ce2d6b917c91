// What the operating system refuses, such as writing to a full disk or reading what is gone, in one line for the user.
import { UserError } from "./errors.ts";

/** The error, as a UserError that says what could not be done if it is one of the operating system. */
export function asMistake(what: string, error: unknown): unknown {
  const refused = error instanceof Error && !(error instanceof UserError) &&
    / \(os error \d+\)/.test(error.message);
  return refused ? new UserError(`${what}: ${error.message}`) : error;
}

/** Runs an action. Throws UserError for what the operating system refuses. */
export function orMistake<T>(what: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw asMistake(what, error);
  }
}
