package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
)

// FingerprintSize is the length in bytes of a fingerprint, a SHA-256.
const FingerprintSize = 32

// magic starts every record; a change of the layout changes it.
const magic = "idem1"

// headLen is the length of what all records have: magic, state, fingerprint.
const headLen = len(magic) + 1 + FingerprintSize

// ErrForeign is the error for a stored value that is not a record: somebody else writes under our keys.
var ErrForeign = errors.New("the stored value is not a record of this plugin")

// Encode lays rec out as bytes:
//
//	magic  state  fingerprint  owner                                      (Running)
//	magic  state  fingerprint                                             (Unknown)
//	magic  state  fingerprint  status(3)                                  (Unkept)
//	magic  state  fingerprint  status(3)  header length(8 hex)  header  body   (Done)
//
// The header is in HTTP's own wire format, since the standard library writes and reads that in one call each.
func Encode(rec Record) []byte {
	var b bytes.Buffer
	b.WriteString(magic)
	b.WriteByte(byte(rec.State))
	b.WriteString(rec.Fingerprint)
	switch rec.State {
	case Running:
		b.WriteString(rec.Owner)
	case Unkept:
		b.WriteString(strconv.Itoa(rec.Answer.Status))
	case Done:
		b.WriteString(strconv.Itoa(rec.Answer.Status))
		at := b.Len()
		b.WriteString("00000000")
		_ = rec.Answer.Header.Write(&b) // a bytes.Buffer takes every write
		copy(b.Bytes()[at:], fmt.Sprintf("%08x", b.Len()-at-8))
		b.Write(rec.Answer.Body)
	}
	return b.Bytes()
}

// Decode reads what Encode wrote; the record shares data's memory. It returns ErrForeign for anything else.
func Decode(data []byte) (Record, error) {
	if len(data) < headLen || string(data[:len(magic)]) != magic {
		return Record{}, ErrForeign
	}
	rec := Record{State: State(data[len(magic)]), Fingerprint: string(data[len(magic)+1 : headLen])}
	rest := data[headLen:]
	switch rec.State {
	case Running:
		rec.Owner = string(rest)
		return rec, nil
	case Unknown:
		return rec, nil
	case Unkept, Done:
		if len(rest) < 3 {
			return Record{}, ErrForeign
		}
		status, err := strconv.Atoi(string(rest[:3]))
		if err != nil || status < 100 {
			return Record{}, ErrForeign
		}
		rec.Answer = &Answer{Status: status}
		if rec.State == Unkept {
			return rec, nil
		}
		err = decodeAnswer(rec.Answer, rest[3:])
		return rec, err
	}
	return Record{}, ErrForeign
}

func decodeAnswer(a *Answer, data []byte) error {
	if len(data) < 8 {
		return ErrForeign
	}
	n, err := strconv.ParseUint(string(data[:8]), 16, 32)
	if err != nil || n > uint64(len(data)-8) {
		return ErrForeign
	}
	a.Body = data[8+n:]
	a.Header = http.Header{}
	if n == 0 {
		return nil
	}
	// The blank line that ends a header block is not stored.
	block := append(data[8:8+n:8+n], "\r\n"...)
	header, err := textproto.NewReader(bufio.NewReaderSize(bytes.NewReader(block), 512)).ReadMIMEHeader()
	if err != nil {
		return ErrForeign
	}
	a.Header = http.Header(header)
	return nil
}
