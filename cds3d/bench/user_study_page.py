"""The page of a user study: one file, no network, answers downloaded as JSON."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which edit is good?</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; max-width: 1200px; margin: 1em auto; padding: 0 1em; }
section { border-top: 1px solid #bbb; padding: 1em 0; }
.row { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 270px; }
img { width: 100%; display: block; }
fieldset { border: 0; padding: 0; margin: .4em 0; }
legend { padding: 0; }
label { margin-right: .5em; }
.open legend { color: #b00; }
button { font: inherit; padding: .5em 1em; }
</style>
<h1>Which edit is good?</h1>
<p>There are @COUNT@ pictures. Each was changed in several ways to show what a text says. Look at the original first.
Then answer three questions about every changed picture, from 1 (not at all) to 5 (fully). At the end, download your
answers and send the file back.</p>
<main></main>
<p><button type="button">Download my answers</button> <span role="status"></span></p>
<p><button type="button" class="anew">Start anew, for another person</button></p>
<script id="data" type="application/json">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
// Kept by the browser, so that a reload loses nothing. Some browsers keep nothing of a file, or of a private window.
const place = `study-${data.study}`;
let kept = {};
try { kept = JSON.parse(localStorage.getItem(place)) || {}; } catch (error) { /* it works without */ }
kept.participant ||= Array.from({length: 16}, () => Math.floor(Math.random() * 16).toString(16)).join("");
kept.chosen ||= {};
const keep = () => { try { localStorage.setItem(place, JSON.stringify(kept)); } catch (error) { /* as above */ } };
const participant = kept.participant;
keep();
const made = (tag, parent, text) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
};
// Pictures and changes come in an order of each person's own, so that no method gains by its place. The participant's
// number decides it, so a reload changes nothing. Answers are told by the places in the data, which the key knows.
let state = parseInt(participant.slice(0, 8), 16);
const drawn = (below) => {  // mulberry32
  state = (state + 0x6D2B79F5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return Math.floor(((t ^ (t >>> 14)) >>> 0) / 2 ** 32 * below);
};
const shuffled = (list) => {
  const pairs = [...list.entries()];
  for (let last = pairs.length - 1; last > 0; last--) {
    const other = drawn(last + 1);
    [pairs[last], pairs[other]] = [pairs[other], pairs[last]];
  }
  return pairs;
};
shuffled(data.items).forEach(([i, item], nth) => {
  const section = made("section", document.querySelector("main"));
  made("h2", section, `Picture ${nth + 1}: from "${item.from}" to "${item.to}"`);
  const row = made("div", section);
  row.className = "row";
  const original = made("figure", row);
  made("img", original).src = item.source;
  made("figcaption", original, "Original");
  shuffled(item.edits).forEach(([k, edit], nth) => {
    const figure = made("figure", row);
    made("img", figure).src = edit;
    made("figcaption", figure, `Change ${nth + 1}`);
    for (const [name, text] of Object.entries(data.questions)) {
      const set = made("fieldset", figure);
      made("legend", set, text);
      for (let value = 1; value <= 5; value++) {
        const label = made("label", set);
        const input = made("input", label);
        Object.assign(input, {type: "radio", name: `${i}-${k}-${name}`, value});
        input.checked = kept.chosen[input.name] === value;
        input.onchange = () => { kept.chosen[input.name] = value; keep(); };
        label.append(String(value));
      }
    }
  });
});
document.querySelector(".anew").onclick = () => {
  if (!confirm("This clears all answers in this window. Were they downloaded?")) return;
  try { localStorage.removeItem(place); } catch (error) { /* nothing was kept */ }
  document.querySelectorAll("input").forEach(input => { input.checked = false; });  // or some browsers restore them
  location.reload();
};
document.querySelector("button").onclick = () => {
  let open = 0;
  const answers = [];
  data.items.forEach((item, i) => item.edits.forEach((edit, k) => {
    const answer = {item: i, place: k};
    for (const name of Object.keys(data.questions)) {
      const inputs = document.getElementsByName(`${i}-${k}-${name}`);
      const chosen = Array.from(inputs).find(input => input.checked);
      inputs[0].closest("fieldset").className = chosen ? "" : "open";
      if (chosen) answer[name] = Number(chosen.value); else open++;
    }
    answers.push(answer);
  }));
  const status = document.querySelector("[role=status]");
  if (open) {
    const left = open === 1 ? "1 question is left: it is" : `${open} questions are left: they are`;
    status.textContent = `${left} marked red.`;
    document.querySelector(".open").scrollIntoView({block: "center"});
    return;
  }
  const text = JSON.stringify({study: data.study, participant, answers});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = `answers-${participant}.json`;
  document.body.append(link);
  link.click();
  link.remove();
  status.textContent = "Thank you. Please send the downloaded file back.";
};
</script>
</html>
"""
