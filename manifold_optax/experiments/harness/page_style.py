"""How the page of a report looks: light and dark, on paper-wide and phone-wide screens.

It names no font and no file, so that nothing is fetched. Pairs of text and background
have a contrast of at least 4.5, as WCAG 2.2, criterion 1.4.3, asks for.
"""

STYLE = """\
:root {
  color-scheme: light dark;
  --text: #1c1e21; --soft: #5a6068; --back: #ffffff; --raised: #f4f5f7;
  --line: #d9dce1; --link: #0b57d0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e6ea; --soft: #a3a9b3; --back: #15171a; --raised: #1f2226;
    --line: #363a41; --link: #8ab4f8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem;
  color: var(--text); background: var(--back);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.35rem; line-height: 1.3; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1.1rem; line-height: 1.3; }
header p { margin: .25rem 0 0; color: var(--soft); }
p, li { max-width: 46rem; }
a { color: var(--link); }
nav ul {
  display: flex; flex-wrap: wrap; gap: .25rem 1.25rem;
  margin: 1rem 0 1.5rem; padding: .6rem 0; list-style: none;
  border-block: 1px solid var(--line);
}
.scroll, pre { overflow-x: auto; }
/* A shade at the right edge while there is more to scroll to; the first layer lies on
   it at the end of the table. The first column stays in view. */
.scroll {
  margin: 1rem 0;
  background:
    linear-gradient(var(--back), var(--back)) right / 1.5rem 100% no-repeat local,
    linear-gradient(to left, var(--line), transparent) right / 1.5rem 100% no-repeat;
}
.scroll :is(th, td):first-child { position: sticky; left: 0; background: var(--back); }
table {
  border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
}
th, td {
  padding: .35rem .8rem; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line);
}
.scroll thead th { color: var(--soft); }
td.sentence { min-width: 18rem; white-space: normal; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
pre {
  padding: .8rem 1rem; border-radius: .4rem; background: var(--raised);
  font-size: .875rem; line-height: 1.45;
}
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; }
figure { margin: 1.25rem 0 2rem; }
/* Figures are drawn on white, in the dark as well. */
.card {
  width: fit-content; max-width: 100%; padding: .6rem; overflow-x: auto;
  border: 1px solid var(--line); border-radius: .4rem; background: #ffffff;
}
img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .4rem; color: var(--soft); font-size: .9rem; }
summary { cursor: pointer; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media (max-width: 40rem) {
  body { padding-top: 1rem; }
  th, td { padding-inline: .5rem; }
  img.wide { max-width: none; width: 44rem; }
}
@media print {
  nav { display: none; }
  figure, tr { break-inside: avoid; }
}
"""
