package redisclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

// TLS says how connections to Redis are encrypted. CA, Cert and Key are PEM text, or the path of a file, which is read at
// every connect so that a renewed certificate needs no restart.
type TLS struct {
	Enabled            bool
	CA                 string // certificates that sign the server's; empty: those of the system
	Cert, Key          string // of the client; empty: none
	ServerName         string // that the server's certificate has to bear; empty: the host of the address
	InsecureSkipVerify bool   // take any certificate
}

// UnixScheme is what comes before the path of a unix socket in an address.
const UnixScheme = "unix://"

// pemBegin is what tells PEM text from the path of a file.
const pemBegin = "-----BEGIN "

// shownPath matches what can be shown as the path of a file. A key in another form than PEM, such as base64, is longer.
var shownPath = regexp.MustCompile(`^(\S{0,40}|[./][^\s/]{0,40}(/[^\s/]{0,40}){0,20})$`)

// ShownPEM is what may be shown of a setting that is PEM text or a path, and may hold a private key.
func ShownPEM(value string) string {
	switch {
	case strings.Contains(value, pemBegin):
		return "PEM text"
	case !shownPath.MatchString(value):
		return "…"
	}
	return value
}

// errNoCertificate is the error for a CA without any.
var errNoCertificate = errors.New("there is no PEM certificate in it")

// Roots returns the certificates of t.CA, nil if it is empty.
func (t *TLS) Roots() (*x509.CertPool, error) {
	if t.CA == "" {
		return nil, nil
	}
	data, err := pemOf(t.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errNoCertificate
	}
	return pool, nil
}

// Certificates returns the client's certificate, none if t.Cert is empty.
func (t *TLS) Certificates() ([]tls.Certificate, error) {
	if t.Cert == "" {
		return nil, nil
	}
	cert, err := pemOf(t.Cert)
	if err != nil {
		return nil, err
	}
	key, err := pemOf(t.Key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	return []tls.Certificate{pair}, nil
}

func pemOf(value string) ([]byte, error) {
	if strings.Contains(value, pemBegin) {
		return []byte(value), nil
	}
	data, err := ReadFile(value)
	if err != nil {
		err = fmt.Errorf("%s: %w", ShownPEM(value), err)
	}
	return data, err
}

// ReadFile is os.ReadFile, with an error that does not name the file: its name may be a secret that stands where a path belongs.
func ReadFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err == nil { // Yaegi panics at the assertion
		return data, nil
	}
	pathErr, is := err.(*os.PathError) //nolint:errorlint // nor does errors.As work there
	if is {
		err = pathErr.Err
	}
	return nil, err
}

// encrypt makes the TLS handshake over conn, which it closes if that fails.
func encrypt(opts *Options, conn net.Conn, address string) (net.Conn, error) {
	roots, err := opts.TLS.Roots()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("CA of Redis: %w", err)
	}
	certificates, err := opts.TLS.Certificates()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("client certificate for Redis: %w", err)
	}
	name := opts.TLS.ServerName
	if name == "" {
		name = hostOf(address)
	}
	secure := tls.Client(conn, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		RootCAs:            roots,
		Certificates:       certificates,
		ServerName:         name,
		InsecureSkipVerify: opts.TLS.InsecureSkipVerify, //nolint:gosec // as configured
	})
	_ = conn.SetDeadline(time.Now().Add(opts.DialTimeout))
	err = secure.HandshakeContext(context.Background())
	_ = conn.SetDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) { // a Redis without TLS waits for the end of a line
		err = fmt.Errorf("no answer to the handshake, as from a port without TLS: %w", err)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS with %s: %w", address, err)
	}
	return secure, nil
}

// connect connects pc to the server, or to the master that the sentinels name.
func connect(c *Client, pc *pooledConn) error {
	if c.master != nil {
		return connectToMaster(c, pc)
	}
	return connectTo(c, pc, c.opts.Address)
}

// connectTo connects pc to address.
func connectTo(c *Client, pc *pooledConn, address string) error {
	pc.address = address
	netConn, err := dial(&c.opts, address)
	if err != nil {
		return err
	}
	if c.master != nil && !c.master.track(pc, netConn, address) {
		_ = netConn.Close()
		return errNotMaster
	}
	conn, err := initConn(&c.opts, netConn)
	if err != nil {
		return err
	}
	pc.conn = conn
	pc.net = netConn
	pc.timeout = c.opts.ReadTimeout
	pc.reader = bufio.NewReader(netConn)
	if c.main == nil && !c.checked.Swap(true) {
		go check(c)
	}
	return nil
}

// dialConn opens a connection to address that is in no pool.
func dialConn(opts *Options, address string) (redis.Conn, error) {
	netConn, err := dial(opts, address)
	if err != nil {
		return nil, err
	}
	return initConn(opts, netConn)
}

// dial opens a connection to address. redigo's Dial is not used, because it logs in through a select statement.
func dial(opts *Options, address string) (net.Conn, error) {
	network, target := "tcp", address
	if strings.HasPrefix(address, UnixScheme) {
		network, target = "unix", address[len(UnixScheme):]
	}
	dialer := &net.Dialer{Timeout: opts.DialTimeout}
	conn, err := dialer.DialContext(context.Background(), network, target)
	if err == nil && opts.TLS.Enabled {
		return encrypt(opts, conn, address)
	}
	return conn, err
}

// initConn authenticates, selects the database, and returns a connection for commands. If that fails, it closes netConn.
func initConn(opts *Options, netConn net.Conn) (redis.Conn, error) {
	conn := redis.NewConn(netConn, opts.ReadTimeout, opts.WriteTimeout)
	err := authenticate(opts, conn)
	if err == nil && opts.DB != 0 {
		_, err = conn.Do("SELECT", opts.DB)
		if err != nil {
			err = fmt.Errorf("SELECT %d: %w", opts.DB, err)
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

var errNoPassword = errors.New("AUTH: the password file is empty")

func authenticate(opts *Options, conn redis.Conn) error {
	password := opts.Password
	if opts.PasswordFile != "" {
		data, err := os.ReadFile(opts.PasswordFile)
		if err != nil {
			return err
		}
		password = strings.TrimRight(string(data), "\r\n")
		if password == "" { // never log in as the default user instead
			return errNoPassword
		}
	}
	if password == "" {
		return nil
	}
	args := []interface{}{password}
	if opts.Username != "" {
		args = []interface{}{opts.Username, password}
	}
	_, err := conn.Do("AUTH", args...)
	if err != nil {
		return fmt.Errorf("AUTH: %w", withoutArguments(err)) // of which one is the password
	}
	return nil
}

// warm opens connections in advance. It ignores failures: the first command reports them.
func (c *Client) warm() {
	defer recovered("opening connections to Redis")
	for i := 0; i < cap(c.conns) && i < c.opts.MinIdleConns; i++ {
		c.warmOne()
	}
}

// warmOne connects the next free pooledConn.
func (c *Client) warmOne() {
	pc := <-c.conns
	defer putConn(c, pc)
	if pc.conn == nil {
		_ = connect(c, pc)
	}
}

// recovered ends a panic in a goroutine of the plugin, which would end Traefik.
func recovered(doing string) {
	if p := recover(); p != nil {
		log.Printf("level=error msg=%q cause=%q", doing+" failed", p)
	}
}
