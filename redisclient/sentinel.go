package redisclient

import (
	"errors"
	"fmt"
	"log"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Sentinel says under which name sentinels know the master, and how to log in to them.
type Sentinel struct {
	MasterName   string // empty: there are no sentinels
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect
}

// askPause is between two questions to one sentinel: a promotion is followed so much after a sentinel knows of it.
const askPause = 200 * time.Millisecond

var (
	errNoMaster  = errors.New("no sentinel has named the master yet")
	errNotMaster = errors.New("another server is the master now")
	errDemoted   = errors.New("it is a replica now, and the sentinels have not named another master yet")
)

// master is what is known of the server that the sentinels name. Each of them is asked again and again. The newest
// configuration counts: a sentinel that was cut off may go on naming the master that was.
type master struct {
	mu      sync.Mutex         // guards everything below
	changed *sync.Cond         // of mu: address has changed, or a dial has waited long enough
	address string             // empty: not known yet
	epoch   int64              // number of the configuration in which it became the master
	conns   map[*lane]net.Conn // to address; some may be closed already
	said    []string           // last answer of each sentinel; empty if there was none
	errs    []error            // why there was none
	closed  bool
}

// watcher asks one sentinel. Only one call of look runs at a time.
type watcher struct {
	master *master
	opts   Options // of the sentinel
	name   string  // of the master
	place  int     // of the sentinel in master.said
	conn   redis.Conn
	timer  *time.Timer // guarded by master.mu
}

// newMaster starts to ask the sentinels of opts.
func newMaster(opts Options) *master {
	addresses := strings.Split(opts.Address, ",")
	name := opts.Sentinel.MasterName
	m := &master{conns: map[*lane]net.Conn{}, said: make([]string, len(addresses)), errs: make([]error, len(addresses))}
	m.changed = sync.NewCond(&m.mu)
	opts.Username = opts.Sentinel.Username
	opts.Password = opts.Sentinel.Password
	opts.PasswordFile = opts.Sentinel.PasswordFile
	opts.DB = 0
	for place, address := range addresses {
		opts.Address = address
		startWatch(&watcher{master: m, opts: opts, name: name, place: place})
	}
	return m
}

func startWatch(w *watcher) {
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	w.timer = time.AfterFunc(0, w.look)
}

// close ends the questions. Whoever still connects takes the master that is known.
func (m *master) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

// look asks once.
func (w *watcher) look() {
	defer w.again()
	address, epoch, err := w.ask()
	if err != nil {
		w.disconnect()
		err = fmt.Errorf("sentinel %s: %w", w.opts.Address, err)
	}
	w.master.told(w.place, address, epoch, err)
}

// again has the sentinel asked once more, whatever became of the last time.
func (w *watcher) again() {
	if p := recover(); p != nil {
		log.Printf("level=error msg=\"asking a sentinel failed\" cause=%q", p)
	}
	w.master.mu.Lock()
	defer w.master.mu.Unlock()
	if w.master.closed {
		w.disconnect()
	} else {
		w.timer.Reset(askPause)
	}
}

func (w *watcher) disconnect() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// ask returns the master's address, and if that is news also the number of the configuration.
func (w *watcher) ask() (string, int64, error) {
	if w.conn == nil {
		conn, err := connect(&w.opts, w.opts.Address)
		if err != nil {
			return "", 0, err
		}
		w.conn = conn
	}
	address, err := w.where()
	if err != nil || !w.master.elsewhere(address) {
		return address, 0, err
	}
	reply, err := w.conn.Do("SENTINEL", "MASTER", w.name)
	if err != nil {
		return "", 0, err
	}
	again, err := w.where()
	if err != nil || again != address { // it changes just now
		return "", 0, err
	}
	fields := elements(reply)
	for i := 0; i+1 < len(fields); i += 2 {
		if text(fields[i]) == "config-epoch" {
			epoch, err := strconv.ParseInt(text(fields[i+1]), 10, 64)
			return address, epoch, err
		}
	}
	return "", 0, unexpected("SENTINEL MASTER", reply)
}

func (w *watcher) where() (string, error) {
	reply, err := w.conn.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", w.name)
	if err != nil {
		return "", err
	}
	pair := elements(reply)
	if len(pair) != 2 {
		return "", fmt.Errorf("it knows no master %q", w.name)
	}
	return net.JoinHostPort(text(pair[0]), text(pair[1])), nil
}

// told takes note of what a sentinel said. Its word counts if no master is known, if it tells of a newer configuration, or
// if most sentinels say the same and none says otherwise: then an administrator has begun the numbers anew.
func (m *master) told(place int, address string, epoch int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said[place] = address
	m.errs[place] = err
	if address == "" || address == m.address {
		return
	}
	agreed := 0
	for _, said := range m.said {
		switch said {
		case address:
			agreed++
		case "":
		default:
			agreed -= len(m.said)
		}
	}
	if m.address != "" && epoch <= m.epoch && agreed <= len(m.said)/2 {
		return
	}
	if m.address != "" {
		log.Printf("level=warn msg=\"another Redis is the master now\" master=%q before=%q", address, m.address)
	}
	m.address = address
	m.epoch = epoch
	// Whoever waits for a reply of the old master sends again, to the new one.
	for _, conn := range m.conns {
		_ = conn.Close()
	}
	m.conns = map[*lane]net.Conn{}
	m.changed.Broadcast()
}

// elsewhere tells whether the master is known to be somewhere else than at address.
func (m *master) elsewhere(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.address != address
}

// await returns the master's address as soon as one is known that is not the one given, or an error when it is too late.
func (m *master) await(not string, deadline time.Time) (string, error) {
	timer := time.AfterFunc(time.Until(deadline), m.wake)
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.address == not && time.Now().Before(deadline) {
		m.changed.Wait()
	}
	if m.address != not {
		return m.address, nil
	}
	if not != "" {
		return "", errDemoted
	}
	cause := errNoMaster
	for _, err := range m.errs {
		if err != nil {
			cause = fmt.Errorf("%w; %w", cause, err)
		}
	}
	return "", cause
}

// wake has those look again who wait for a master.
func (m *master) wake() {
	defer recovered("waiting for a master")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed.Broadcast()
}

// enlist has conn closed as soon as another server than that at address is the master; false if one is already.
func (m *master) enlist(l *lane, conn net.Conn, address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.address != address {
		return false
	}
	m.conns[l] = conn
	return true
}

// dialMaster connects l to the master. One that says it is a replica is not the master any more, whatever the sentinels
// say: then the next one is waited for, no longer than connecting may take.
func dialMaster(c *Client, l *lane) error {
	deadline := time.Now().Add(c.opts.DialTimeout)
	not := ""
	for {
		address, err := c.master.await(not, deadline)
		if err == nil {
			err = open(c, l, address)
		}
		if err != nil {
			return err
		}
		role := elements(ask(l, "ROLE"))
		demoted := len(role) > 0 && text(role[0]) != "master"
		if !demoted {
			return nil
		}
		disconnect(l)
		not = address
	}
}

// ask sends one command over l and returns its reply; nil for an error, of which a user who may not ask gets one.
func ask(l *lane, command string) interface{} {
	reply, err := l.conn.Do(command)
	if err != nil {
		return nil
	}
	return reply
}

// elements are those of an array; none for anything else.
func elements(reply interface{}) []interface{} {
	if reply == nil { // Yaegi panics at the assertion
		return nil
	}
	all, _ := reply.([]interface{})
	return all
}

// isReplica tells by an error reply that a server is not the master any more, or ceased to be while the command waited for
// replicas. In Redis 6 and before, an error in a script stands in the middle of its reply.
func isReplica(reply error) bool {
	return strings.Contains(reply.Error(), "READONLY ") || strings.HasPrefix(reply.Error(), "UNBLOCKED ")
}
