export function lexer(text: string): { type: string; raw: string; [name: string]: any }[];
