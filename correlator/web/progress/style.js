/** The style of `correlator-progress`. A page changes it by the variables, or by `::part`. */

export const STYLE = `
:host { display: block; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
:host([hidden]), [hidden] { display: none !important; }
.line { display: flex; flex-wrap: wrap; align-items: center; gap: 0.15em var(--correlator-gap, 0.75em); }
.track {
  flex: 1 1 var(--correlator-width, 10em); height: var(--correlator-height, 0.6em); overflow: hidden;
  border-radius: var(--correlator-radius, 99px);
  background: var(--correlator-track, light-dark(#dfe3e8, #303742));
}
.bar {
  height: 100%; border-radius: inherit; transform: translateX(-100%); transition: transform 0.4s;
  background: var(--correlator-running, light-dark(#0072b2, #56b4e9));
}
.bar.completed { background: var(--correlator-completed, light-dark(#008a64, #2bc095)); }
.bar.failed { background: var(--correlator-failed, light-dark(#c24e00, #ff8d47)); }
.bar.late, .bar.overdue { background: var(--correlator-late, light-dark(#b07a00, #f0b429)); }
.bar.cancelled { background: var(--correlator-cancelled, light-dark(#7f8895, #7d8898)); }
.bar.old { filter: grayscale(0.85); }
.percent { font-weight: 600; min-width: 3.2em; }
.notice { font-style: italic; }
.failure { margin: 0.2em 0 0; color: var(--correlator-error, light-dark(#a04000, #ff9d61)); }
.failure pre { margin: 0.2em 0 0; white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: 0.9em; }
summary { cursor: pointer; }
@media (prefers-reduced-motion: reduce) { .bar { transition: none; } }
@media (forced-colors: active) {
  .track { border: 1px solid CanvasText; }
  .bar { forced-color-adjust: none; background: Highlight !important; }
}
`;
