// A figure opens in full over the page; where scripts are off, the link behind it opens the picture itself.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.image-reference");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const picture = link.querySelector("img").cloneNode();
  for (const fixed of ["style", "width", "height"]) picture.removeAttribute(fixed);
  const dialog = document.createElement("dialog");
  dialog.className = "zoom";
  dialog.append(picture);
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // sphinx takes Escape for itself
  dialog.addEventListener("close", () => { dialog.remove(); link.focus(); });
  document.body.append(dialog);
  dialog.showModal();
});
