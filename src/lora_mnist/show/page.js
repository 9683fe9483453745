// The pad to draw on. Its value is {png, test}: the picture as a data URL, and the number of the
// test image that it shows, or null once somebody has drawn on it.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const side = canvas.width;
let isDrawing = false;

function blank() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, side, side);
}

function position(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * side) / box.width,
    ((event.clientY - box.top) * side) / box.height,
  ];
}

function send(png) {
  props.value = { png, test: null };
  trigger("input");
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  isDrawing = true;
  Object.assign(pen, { strokeStyle: "#fff", lineCap: "round", lineJoin: "round" });
  pen.lineWidth = side / 14;
  const [x, y] = position(event);
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(x, y); // a dot, should nothing follow
  pen.stroke();
});

canvas.addEventListener("pointermove", (event) => {
  if (!isDrawing) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) pen.lineTo(...position(each));
  pen.stroke();
});

for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (!isDrawing) return;
    isDrawing = false;
    send(canvas.toDataURL("image/png"));
  });
}

element.querySelector("button").addEventListener("click", () => {
  blank();
  send(null);
});

watch("value", () => {
  if (!props.value?.png) return;
  const image = new Image();
  image.onload = () => {
    blank();
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, side, side);
  };
  image.src = props.value.png;
});

blank();
