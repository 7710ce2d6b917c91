// What travels from the reader of prepare to its encoders: about a megabyte of documents as bytes, so that no string is made
// for a document on the way and the memory can be handed from thread to thread.

/** Whole documents, one behind the other. The UTF-8 text of document d is text[ends[d - 1] .. ends[d]), from 0 for the first. */
export interface Block {
  /** Valid UTF-8 in a buffer that belongs to this block alone. */
  text: Uint8Array<ArrayBuffer>;
  /** Where each document ends in text, in bytes. A document that is null or "" ends where the one before it does. */
  ends: Uint32Array<ArrayBuffer>;
  /** Bytes of input, as they are stored, that were read for this block. */
  read: number;
}
