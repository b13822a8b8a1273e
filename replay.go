package idem

import (
	"bufio"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/example/traefik-idem/stats"
	"github.com/example/traefik-idem/store"
)

// replay sends the kept answer of the first request.
func replay(h *handler, w http.ResponseWriter, r *http.Request, held *store.Held) {
	total := stats.ReplaysStore
	if held.Local {
		total = stats.ReplaysLocal
	}
	stats.Count(h.counter, total, r)
	header, answer := w.Header(), held.Answer
	if header["Content-Type"] == nil {
		header["Content-Type"] = nil // if the answer has none, net/http must not guess one
	}
	for name, values := range answer.Header.Clone() { // the slices are shared by all replays
		if !h.omit[name] { // another middleware on the same Redis may have kept it
			header[name] = values
		}
	}
	if answer.Header["Content-Length"] == nil {
		declareLength(r, header, answer)
	}
	if h.replayHeader != "" {
		header[h.replayHeader] = []string{"true"}
	}
	if h.announces {
		announceReplay(h, w, r, held)
	}
	w.WriteHeader(answer.Status)
	if len(answer.Body) > pieceBytes {
		_ = writeInPieces(w, answer.Body) // a client that has gone needs no answer
		return
	}
	_, _ = io.WriteString(w, answer.Body)
}

// announceReplay announces that the answer in held is replayed.
func announceReplay(h *handler, w http.ResponseWriter, r *http.Request, held *store.Held) {
	left := held.Left
	if left == 0 && h.expiresHeader != "" {
		left = timeLeft(h, held.Key)
	}
	announce(h, w, r, "replayed", held.Degraded, left)
}

// declareLength sets Content-Length for an answer that came in chunks.
func declareLength(r *http.Request, header http.Header, answer *store.Answer) {
	if r.Method != http.MethodHead && !bodiless(answer.Status) {
		header["Content-Length"] = []string{strconv.Itoa(len(answer.Body))}
	}
}

// pieceBytes is how much of a long answer is written at once.
const pieceBytes = 32 << 10

// pieces are writers of such pieces. Traefik's ResponseWriter has no WriteString: without them, what a client has not taken yet
// would be in memory twice.
var pieces = sync.Pool{New: func() interface{} { return bufio.NewWriterSize(io.Discard, pieceBytes) }}

// writeInPieces writes body to w.
func writeInPieces(w io.Writer, body string) error {
	p, _ := pieces.Get().(*bufio.Writer)
	p.Reset(w)
	_, _ = p.WriteString(body) // Flush returns its error
	err := p.Flush()
	p.Reset(io.Discard)
	pieces.Put(p)
	return err
}
