// Asks other programs: compilers, nvidia-smi.

/** What a program prints to stdout, without white space around it, or undefined where it cannot be run or fails. */
export async function answer(command: string, args: string[]): Promise<string | undefined> {
  try {
    const { success, stdout } = await new Deno.Command(command, { args, stdout: "piped", stderr: "null" })
      .output();
    return success ? new TextDecoder().decode(stdout).trim() : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined; // not installed
  }
}
