package store

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// FingerprintSize is the length in bytes of a fingerprint, a SHA-256.
const FingerprintSize = 32

// magic starts every record; a change of the layout changes it.
const magic = "idem1"

// headLen is the length of what all records have: magic, state, fingerprint.
const headLen = len(magic) + 1 + FingerprintSize

// ErrForeign is the error for a stored value that is not a record: somebody else writes under our keys.
var ErrForeign = errors.New("the stored value is not a record of this plugin")

// RunningHead is the record that stands in a shared store as long as the lease holds.
func RunningHead(l *Lease) string {
	return magic + "R" + l.Fingerprint + l.Owner
}

// Head lays out all of a finished record but an answer's body, which follows it as it is. Records are:
//
//	magic  state  fingerprint  owner                                          (Running, see RunningHead)
//	magic  state  fingerprint                                                 (Unknown)
//	magic  state  fingerprint  status(3)                                      (Unkept)
//	magic  state  fingerprint  status(3)  header length  space  header  body  (Done)
//
// The header is in HTTP's own wire format, since the standard library writes and reads that in one call each.
func Head(rec *Record) string {
	switch rec.State {
	case Unknown:
		return magic + "U" + rec.Fingerprint
	case Unkept:
		return magic + "K" + rec.Fingerprint + strconv.Itoa(rec.Answer.Status)
	}
	var b bytes.Buffer
	_ = rec.Answer.Header.Write(&b) // a bytes.Buffer takes every write
	return magic + "D" + rec.Fingerprint + strconv.Itoa(rec.Answer.Status) + strconv.Itoa(b.Len()) + " " + b.String()
}

// Decode reads what Head wrote, with the body behind it; the record shares data's memory. It returns ErrForeign for
// anything else.
func Decode(data []byte) (Record, error) {
	if len(data) < headLen || string(data[:len(magic)]) != magic {
		return Record{}, ErrForeign
	}
	rec := Record{State: State(data[len(magic)]), Fingerprint: string(data[len(magic)+1 : headLen])}
	switch rec.State {
	case Running:
		rec.Owner = string(data[headLen:])
		return rec, nil
	case Unknown:
		return rec, nil
	case Unkept, Done:
		var err error
		rec.Answer, err = decodeAnswer(data[headLen:], rec.State == Done)
		return rec, err
	}
	return Record{}, ErrForeign
}

// decodeAnswer reads the status and, with whole, what follows it.
func decodeAnswer(data []byte, whole bool) (*Answer, error) {
	if len(data) < 3 {
		return nil, ErrForeign
	}
	status, err := strconv.Atoi(string(data[:3]))
	if err != nil || status < 100 {
		return nil, ErrForeign
	}
	a := &Answer{Status: status}
	if !whole {
		return a, nil
	}
	space := bytes.IndexByte(data, ' ')
	if space < 0 {
		return nil, ErrForeign
	}
	n, err := strconv.Atoi(string(data[3:space]))
	if err != nil || n < 0 || n > len(data)-space-1 {
		return nil, ErrForeign
	}
	body := space + 1 + n
	a.Body = data[body:]
	// The blank line that ends a header block is not stored.
	block := strings.NewReader(string(data[space+1:body]) + "\r\n")
	header, err := textproto.NewReader(bufio.NewReaderSize(block, n+2)).ReadMIMEHeader()
	if err != nil {
		return nil, ErrForeign
	}
	a.Header = http.Header(header)
	a.HeaderSize = n + HeaderBytes*len(header)
	return a, nil
}
