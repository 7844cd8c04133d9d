"""Tables that sort in the browser."""

# Sorts a table by the column whose head is pressed: numbers by their value, everything else as text.
SORTING = """<script>
document.querySelectorAll("table").forEach(table => table.querySelectorAll("thead th").forEach((head, column) => {
  head.tabIndex = 0; head.style.cursor = "pointer"; head.title = "Sort by this column";
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => { const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/[<+,]/g, ""));
      return isNaN(number) ? text : number; };
    const rows = [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
      return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)); });
    (down ? rows.reverse() : rows).forEach(row => body.appendChild(row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}));
</script>"""
