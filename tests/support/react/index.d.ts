/** What the types of the hooks and the examples use of React's types. React's own are not in the repository. */

export type ReactNode = ReactElement | string | number | boolean | null | undefined | readonly ReactNode[];

export interface ReactElement {
  readonly type: unknown;
  readonly props: unknown;
}

export interface HTMLAttributes<_T> {
  children?: ReactNode;
  id?: string;
  lang?: string;
  role?: string;
  dateTime?: string;
  "aria-label"?: string;
}

export type DetailedHTMLProps<E, _T> = E & { key?: string | number };

export namespace JSX {
  type Element = ReactElement;
  interface ElementChildrenAttribute {
    children: unknown;
  }
  interface IntrinsicAttributes {
    key?: string | number;
  }
  type Html = DetailedHTMLProps<HTMLAttributes<HTMLElement>, HTMLElement>;
  interface IntrinsicElements {
    html: Html;
    body: Html;
    section: Html;
    h1: Html;
    p: Html;
    ol: Html;
    ul: Html;
    li: Html;
    time: Html;
  }
}
